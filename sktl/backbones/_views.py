"""Which of a network's values make the embedding: from what layers, pooled how."""

import copy
import difflib
import hashlib
import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import nn

from sktl.backbones._text import TextEncoder, check_text_view, pool_tokens
from sktl.backbones._tokens import PADDING, takes_texts
from sktl.exceptions import BackboneError

POOLINGS = ("auto", "avg", "max", "avgmax", "cls", "none")

Layers = int | str | Sequence[int | str] | None


@dataclass(frozen=True)
class FeatureView:
    """What the embedding engine runs: images or texts in, one vector for each out.

    Attributes
    ----------
    module : nn.Module
        Maps normalised float32 images of shape (n, 3, height, width), or int32 tokens of shape (n, length), to
        embeddings of shape (n, ``width``).
    key : str
        Names exactly what is computed; equal keys mean equal embeddings.
    data_config : dict
        How the module's input is made, from pixels or texts.
    width : int
        Number of values per embedding.
    """

    module: nn.Module
    key: str
    data_config: dict[str, Any]
    width: int


def make_view(
    module: nn.Module,
    fingerprint: str,
    data_config: dict[str, Any],
    *,
    layer: Layers = None,
    pooling: str = "auto",
    normalize: bool = False,
    tta: str | None = None,
) -> FeatureView:
    """Choose which values of a network make the embedding.

    Parameters
    ----------
    module : nn.Module
        Maps images or tokens to the backbone's own pooled embedding; left as it is.
    fingerprint : str
        Names the module and its state.
    data_config : dict
        The backbone's.
    layer : int, str, sequence of them or None, default=None
        A stage (an index into timm's ``feature_info`` or a text encoder's layers, negative ones count from the last),
        the name of a submodule, or several, concatenated; None is the backbone's own embedding.
    pooling : {"auto", "avg", "max", "avgmax", "cls", "none"}, default="auto"
        How maps and tokens become one vector. "auto" is the backbone's own way; "avgmax" is the mean of "avg" and
        "max"; "cls" takes the class token; "none" flattens.
    normalize : bool, default=False
        Scale each embedding to Euclidean length 1.
    tta : {"hflip"} or None, default=None
        "hflip" averages the embeddings of an image and of its mirror image.

    Returns
    -------
    view : FeatureView

    Raises
    ------
    BackboneError
        If there is no such layer, or its output cannot be pooled that way.
    """
    if takes_texts(data_config):
        check_text_view(pooling, tta)
    layer = None if layer is None else _as_list(layer)
    if layer is not None:
        network = module.network if isinstance(module, PooledModule) else module
        module = LayerFeatures(network, [_layer_name(network, each) for each in layer], pooling)
    elif pooling != "auto" and isinstance(module, TextEncoder):
        module = TextEncoder(module.encoder, module.pad_token, [pooling])
    elif pooling != "auto":
        module = PooledFeatures(module, pooling)
    if tta == "hflip":
        module = MirrorAveraged(module)
    if normalize:
        module = Normalized(module)
    module = module.eval().requires_grad_(False)
    if layer is not None:
        _end_early(module, data_config)
    choice = [layer, pooling, normalize, tta]
    key = fingerprint
    if choice != [None, "auto", False, None]:
        key = hashlib.sha256(f"{fingerprint}:{json.dumps(choice)}".encode()).hexdigest()
    return FeatureView(module, key, data_config, _width(module, data_config))


def example_input(data_config: dict[str, Any]) -> torch.Tensor:
    """Return an input of one row of zeros, to find out shapes with."""
    if takes_texts(data_config):
        return torch.zeros((1, 8), dtype=torch.int32)
    return torch.zeros(1, *data_config["input_size"], dtype=torch.float32)


class PooledModule(nn.Module):
    """A user's network whose feature maps of shape (n, channels, height, width) are averaged over their area."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps, as timm's networks do under this name."""
        return self.network(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images).mean(dim=(2, 3))


class LayerFeatures(nn.Module):
    """Outputs of some submodules, pooled and concatenated; what comes after the last of them is not computed.

    Several threads may run the same module at once, so each thread keeps apart what its hooks have seen.
    """

    def __init__(self, network: nn.Module, names: list[str], pooling: str):
        super().__init__()
        weights = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        self.network = copy.deepcopy(network, weights)  # the hooks belong to this copy, which shares its weights
        self.names = names
        self.pooling = pooling
        self._seen: dict[int, list[tuple[str, Any]]] = {}
        self._keepers = [_Keep(self._seen, name) for name in set(names)]
        for keeper in self._keepers:
            self.network.get_submodule(keeper.name).register_forward_hook(keeper)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        seen = self._seen[threading.get_ident()] = []
        try:
            with suppress(_Enough):
                self.network(inputs)
        finally:
            del self._seen[threading.get_ident()]
        outputs = dict(seen)  # of a layer that is used several times, what it gave last
        return torch.cat([self._pooled(name, outputs.get(name), inputs) for name in self.names], dim=1)

    def stop_after_last(self, inputs: torch.Tensor) -> None:
        """Learn from one pass how often the layers give something, to end later passes there."""
        seen = self._seen[threading.get_ident()] = []
        self.network(inputs)
        del self._seen[threading.get_ident()]
        for keeper in self._keepers:
            keeper.n_outputs = len(seen)

    def _pooled(self, name: str, output: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
        if not isinstance(output, torch.Tensor):
            raise BackboneError(f"The layer {name!r} gives no tensor for a row, so that it cannot be a feature.")
        if isinstance(self.network, TextEncoder):
            if output.shape[:2] != inputs.shape:
                raise BackboneError(f"The layer {name!r} gives no vector per token, so that it cannot be pooled.")
            own = self.network.pooling if self.pooling == "auto" else [self.pooling]
            return pool_tokens(output, inputs != PADDING, own)
        return pool(output, self.pooling, self.network, self.network.get_submodule(name))


class _Enough(Exception):  # noqa: N818 -- no error: it ends a pass as soon as all outputs asked for are there
    pass


class _Keep:
    """A forward hook that keeps a module's output by thread, and can be copied with the module."""

    def __init__(self, seen: dict[int, list[tuple[str, Any]]], name: str):
        self.seen = seen
        self.name = name
        self.n_outputs: int | None = None  # of all the layers in one pass, once known

    def __call__(self, module, inputs, output):
        seen = self.seen[threading.get_ident()]
        # Copied, because activations and sums in place write into what the layer before them gave.
        if isinstance(output, tuple):  # of some encoders' layers: first the tokens, then what they looked at
            output = output[0]
        seen.append((self.name, output.clone() if isinstance(output, torch.Tensor) else output))
        # Compilers cannot follow the way out, and drop by themselves what is not used.
        if len(seen) == self.n_outputs and not torch.compiler.is_compiling():
            raise _Enough


class PooledFeatures(nn.Module):
    """The last maps or tokens of a network, pooled in another way than its own."""

    def __init__(self, network: nn.Module, pooling: str):
        super().__init__()
        self.network = network
        self.pooling = pooling

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = getattr(self.network, "forward_features", self.network)(images)
        if output.ndim == 2 and self.pooling != "none":
            raise BackboneError(
                f"pooling={self.pooling!r} needs a backbone that gives maps or tokens, and this one gives vectors: use "
                "pooling='auto', or name a layer of it."
            )
        return pool(output, self.pooling, self.network)


class MirrorAveraged(nn.Module):
    """The mean of the embeddings of an image and of its mirror image."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (_in_float32(self.network(images)) + _in_float32(self.network(images.flip(-1)))) / 2


class Normalized(nn.Module):
    """Embeddings of Euclidean length 1."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(_in_float32(self.network(images)), dim=1)


def pool(output: torch.Tensor, pooling: str, network: nn.Module, layer: nn.Module | None = None) -> torch.Tensor:
    """Turn maps of shape (n, channels, height, width) or tokens of shape (n, tokens, width) into one vector per image.

    Parameters
    ----------
    output : tensor
        Of shape (n, ...).
    pooling : str
        One of ``POOLINGS``.
    network : nn.Module
        Asked for the layout of its maps, its prefix tokens and its own way of pooling.
    layer : nn.Module or None, default=None
        What gave the output; asked for the layout first.
    """
    if pooling == "none" or output.ndim == 2:
        return output.flatten(1)
    n_prefix = _count_prefix_tokens(output, network)
    if pooling == "cls" or (pooling == "auto" and n_prefix and getattr(network, "global_pool", "") == "token"):
        if not n_prefix or getattr(network, "cls_token", output) is None:
            raise BackboneError("pooling='cls' needs a backbone with a class token, and this one has none.")
        return output[:, 0]
    if output.ndim not in (3, 4):
        raise BackboneError(f"A layer's output of shape {tuple(output.shape)} cannot be pooled; use pooling='none'.")
    layout = getattr(layer, "output_fmt", getattr(network, "output_fmt", "NCHW"))
    values = _values_last(output[:, n_prefix:] if output.ndim == 3 else output, str(layout))
    average, maximum = values.mean(dim=1), values.amax(dim=1)
    return {"max": maximum, "avgmax": (average + maximum) / 2}.get(pooling, average)


def _count_prefix_tokens(output: torch.Tensor, network: nn.Module) -> int:
    """Return how many tokens stand before those of the image; the layer that cuts the image up has none yet."""
    n_patches = getattr(getattr(network, "patch_embed", None), "num_patches", None)
    if output.ndim != 3 or output.shape[1] == n_patches:
        return 0
    return getattr(network, "num_prefix_tokens", 0)


def _values_last(output: torch.Tensor, layout: str) -> torch.Tensor:
    """Return shape (n, places, values)."""
    if output.ndim == 3:
        return output
    if layout.endswith("NHWC"):  # timm's enumeration has names with a prefix
        return output.flatten(1, 2)
    return output.flatten(2).transpose(1, 2)


def _in_float32(values: torch.Tensor) -> torch.Tensor:
    """Convert even what is float32 already: a program traced in float32, to be run in bfloat16, then converts too."""
    return values.to(torch.float32, copy=True)


def _as_list(layer: Layers) -> list[int | str]:
    layers = [layer] if isinstance(layer, (Integral, str)) else list(layer)
    if not layers or not all(isinstance(each, (Integral, str)) for each in layers):
        raise BackboneError(
            f"The 'layer' parameter must be None, an int, a str, or a list of one or more of them, got {layer!r}."
        )
    return [each if isinstance(each, str) else int(each) for each in layers]


def _layer_name(module: nn.Module, layer: int | str) -> str:
    """Return the name of the submodule whose output a layer is."""
    if isinstance(layer, str):
        names = [name for name, _ in module.named_modules() if name]
        if layer not in names:
            matches = difflib.get_close_matches(layer, names, n=3, cutoff=0.5) or names[:3]
            raise BackboneError(
                f"The backbone has no layer {layer!r}. Some that it has: {', '.join(map(repr, matches))}."
            )
        return layer
    if isinstance(module, TextEncoder):
        stages = module.layers
    else:
        stages = [stage["module"] for stage in getattr(module, "feature_info", [])]
    if not -len(stages) <= layer < len(stages):
        known = f"has {len(stages)} stages" if stages else "does not know its stages; name a submodule"
        raise BackboneError(f"The 'layer' parameter is {layer}, and the backbone {known}.")
    return stages[layer]


def _end_early(module: nn.Module, data_config: dict[str, Any]) -> None:
    features = next(each for each in module.modules() if isinstance(each, LayerFeatures))
    with torch.inference_mode():
        features.stop_after_last(example_input(data_config))


def _width(module: nn.Module, data_config: dict[str, Any]) -> int:
    with torch.inference_mode():
        return module(example_input(data_config)).shape[1]
