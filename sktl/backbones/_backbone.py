"""What sktl knows of a pretrained network, whatever its source."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from sktl._forks import ForkSafeLock
from sktl._random import private_torch_rng
from sktl.backbones._fingerprint import fingerprint
from sktl.backbones._groups import layer_groups
from sktl.backbones._original import OriginalHead
from sktl.backbones._stored import (
    current_shelf,
    describe_module,
    module_from_description,
    pack_tensors,
    unpack_tensors,
)
from sktl.backbones._text import build_text_encoder
from sktl.backbones._tokens import Tokenizer, takes_texts
from sktl.backbones._views import FeatureView, PooledModule, example_input, make_view
from sktl.exceptions import BackboneError, UnsafeFileError


@dataclass(frozen=True, eq=False, repr=False)
class Backbone:
    """A pretrained network without its classifier, frozen and shared; copy it before training.

    A pickle holds its weights in safetensors' format, on no device. It is loaded without building the network, which
    happens at the first use; unpickled backbones of one fingerprint share one module.

    Attributes
    ----------
    name : str
        What was asked for.
    module : nn.Module
        Maps images of shape (n, 3, height, width), or tokens of shape (n, length), to embeddings of shape (n,
        ``width``); in eval mode, without gradients.
    recipe : dict
        How to build the module again, without weights; a text backbone's holds its tokenizer too.
    data_config : dict
        How the module's input is made: timm's data config for pixels, or the settings of the tokenizer.
    width : int
        Number of values per embedding, found by a forward pass.
    fingerprint : str
        SHA-256 of structure, state and data config; the same in every process.
    low_rank : dict of str to pair of tensor
        Matrices whose products training added to weights, by the names of these; empty unless it did so.
    original_head : OriginalHead or None
        The classifier that was cut off, where there was one: no part of the identity, and left out of pickles.
    """

    name: str
    module: nn.Module
    recipe: dict[str, Any]
    data_config: dict[str, Any]
    width: int
    fingerprint: str
    low_rank: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    original_head: OriginalHead | None = None
    _views: dict[str, FeatureView] = field(default_factory=dict)

    @classmethod
    def from_module(
        cls, name: str, module: nn.Module, recipe: dict, data_config: dict, low_rank: Mapping | None = None
    ) -> "Backbone":
        """Freeze a network and find out its width and fingerprint."""
        module = module.eval().requires_grad_(False)
        data_config = plain_data_config(data_config)
        module, width = _pooled(name, module, data_config)
        identity = fingerprint(module, data_config)
        _built.setdefault(identity, module)
        return cls(name, module, recipe, data_config, width, identity, low_rank or {})

    @property
    def input_kind(self) -> str:
        """What it embeds: "images" or "texts"."""
        return "texts" if takes_texts(self.data_config) else "images"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """How texts become tokens, for a text backbone."""
        settings = {key: self.data_config[key] for key in ("max_length", "prompt", "lowercase")}
        return Tokenizer(self.recipe["tokenizer"], **settings)

    @property
    def layer_groups(self) -> list[list[str]]:
        """Names of parameters by depth; the first group is next to the input."""
        return layer_groups(self.module)

    @property
    def view(self) -> FeatureView:
        """The backbone's own pooled embedding."""
        return self.feature_view()

    def feature_view(self, **choice: Any) -> FeatureView:
        """Choose which of the network's values make the embedding.

        Parameters
        ----------
        **choice : dict
            ``layer``, ``pooling``, ``normalize`` and ``tta``; see :func:`~sktl.backbones.make_view`.
        """
        key = repr(sorted(choice.items()))
        if key not in self._views:
            self._views[key] = make_view(self.module, self.fingerprint, self.data_config, **choice)
        return self._views[key]

    def in_use(self) -> "Backbone":
        """Return the same backbone with the module of an equal one, if there is one in use."""
        return dataclasses.replace(self, module=_built.get(self.fingerprint, self.module), _views={})

    def with_original_head(self, head: OriginalHead | None) -> "Backbone":
        """Return the same backbone with another head beside it, or none."""
        return dataclasses.replace(self, original_head=head)

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, {self.width})"  # short enough for the tables of a notebook

    def __getstate__(self) -> dict[str, Any]:
        state = {name: self.__dict__[name] for name in _KEPT}
        if current_shelf() is not None:
            state["recipe"] = _plain_recipe(self.recipe)
        return {**state, "weights": self._packed_weights()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        weights = state.pop("weights")
        state.update(_views={}, low_rank={})
        if current_shelf() is None:
            self.__dict__.update(state, _weights=weights)
            return
        state["recipe"] = _recipe_from_plain(state["recipe"])
        module = _module_with_weights(state["recipe"], _unpack(weights))
        if hasattr(weights, "unpack"):
            state["_reference"] = weights
        state["fingerprint"] = fingerprint(module, state["data_config"])  # what a file says of itself may be wrong
        self.__dict__.update(state, module=_built.setdefault(state["fingerprint"], module))

    def with_weights(self, weights: Any) -> "Backbone":
        """Return a backbone for a pickle or a file that has these in place of its weights.

        Parameters
        ----------
        weights : object
            With a method ``unpack()``, which gives the weights.
        """
        other = object.__new__(type(self))
        other.__dict__.update({name: self.__dict__[name] for name in _KEPT}, _views={}, low_rank={}, _weights=weights)
        return other

    @property
    def reference(self) -> Any:
        """What it was unpickled with in place of weights, or None."""
        weights = self.__dict__.get("_weights", self.__dict__.get("_reference"))
        return weights if hasattr(weights, "unpack") else None

    def __getattr__(self, name: str) -> Any:
        """Build the module of an unpickled backbone when it is first asked for, or share one that is there already."""
        if name != "module" or "_weights" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with _building():
            if "module" not in self.__dict__:
                module = _built.get(self.fingerprint)
                if module is None:
                    module = _module_with_weights(self.recipe, _unpack(self._weights))
                    if self.recipe["kind"] == "module":  # its classes may have been edited since it was pickled
                        self.__dict__["fingerprint"] = fingerprint(module, self.data_config)
                    module = _built.setdefault(self.fingerprint, module)
                self.__dict__["module"] = module
                weights = self.__dict__.pop("_weights")
                if hasattr(weights, "unpack"):
                    self.__dict__["_reference"] = weights
        return self.__dict__["module"]

    def _packed_weights(self) -> Any:
        weights = self.__dict__.get("_weights")
        if weights is not None and (current_shelf() is None or hasattr(weights, "unpack")):
            return weights
        return pack_tensors(self.module.state_dict(), self.fingerprint)


def _unpack(weights: Any) -> dict[str, torch.Tensor]:
    return weights.unpack() if hasattr(weights, "unpack") else unpack_tensors(weights)


_KEPT = ("name", "recipe", "data_config", "width", "fingerprint")
_building = ForkSafeLock(RLock)
_built: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()  # frozen modules by fingerprint, while in use


def _pooled(name: str, module: nn.Module, data_config: dict[str, Any]) -> tuple[nn.Module, int]:
    shape = _output_shape(name, module, data_config)
    if len(shape) == 4:
        return PooledModule(module).eval(), shape[1]
    if len(shape) != 2:
        raise BackboneError(
            f"The backbone {name} turns one image into an output of shape {shape}; expected (n, width) "
            "or (n, channels, height, width). Wrap it in a module that pools its output."
        )
    return module, shape[1]


def _output_shape(name: str, module: nn.Module, data_config: dict[str, Any]) -> tuple[int, ...]:
    try:
        with torch.inference_mode():
            output = module(example_input(data_config))
    except Exception as error:  # the network may be the user's own
        if takes_texts(data_config):
            raise BackboneError(f"The backbone {name} cannot be run on tokens alone: {error}") from error
        size = tuple(data_config["input_size"])
        raise BackboneError(
            f"The backbone {name} cannot be run on an image of shape {size} (channels, height, width): "
            f"{error} Give the size that it takes with image_size= or data_config={{'input_size': (3, height, width)}}."
        ) from error
    if not isinstance(output, torch.Tensor):
        raise BackboneError(f"The backbone {name} must return one tensor, got {type(output).__name__} instead.")
    return tuple(output.shape)


def plain_data_config(data_config: dict[str, Any]) -> dict[str, Any]:
    """Return a data config of lists, numbers and strings, as JSON would give it back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data_config.items()}


def pack_module(module: nn.Module) -> dict[str, Any]:
    """Return a user's network as its structure and its packed weights, on no device."""
    recipe = module_recipe(module)
    if current_shelf() is not None:
        recipe = _plain_recipe(recipe)
    return {**recipe, "weights": pack_tensors(module.state_dict(), f"module {id(module)}")}


def unpack_module(packed: dict[str, Any]) -> nn.Module:
    """Return a packed network, on the CPU."""
    recipe = packed if current_shelf() is None else _recipe_from_plain(packed)
    module = build_from_recipe(recipe)
    module.load_state_dict(unpack_tensors(packed["weights"]))
    return module


def module_recipe(module: nn.Module) -> dict[str, Any]:
    """Return the recipe of a network that only its own Python class can build: its structure, without weights."""
    skeleton = copy.deepcopy(module).cpu()
    _convert_state(skeleton, lambda tensor: tensor.to("meta"))
    return {"kind": "module", "skeleton": skeleton}


def build_from_recipe(recipe: dict[str, Any], drop_path: float = 0.0) -> nn.Module:
    """Build the module that a recipe describes: a named one at a random start, a user's own with zero weights.

    Parameters
    ----------
    recipe : dict
        Of a :class:`Backbone`.
    drop_path : float, default=0.0
        Rate of stochastic depth in the last block, from which it falls to 0 towards the input.

    Raises
    ------
    BackboneError
        If there is to be stochastic depth, and the architecture has none.
    """
    if drop_path:
        return _with_drop_path(recipe, drop_path)
    if recipe["kind"] == "text":
        return build_text_encoder(recipe)
    if recipe["kind"] == "module":
        module = copy.deepcopy(recipe["skeleton"])
        _convert_state(module, lambda tensor: torch.zeros_like(tensor, device="cpu"))
        return module
    import timm

    return timm.create_model(recipe["architecture"], pretrained=False, num_classes=0, **recipe["kwargs"]).float()


def _with_drop_path(recipe: dict[str, Any], rate: float) -> nn.Module:
    import timm

    if recipe["kind"] == "timm":
        kwargs = {**recipe["kwargs"], "drop_path_rate": rate}
        with suppress(TypeError):  # of architectures that take no such argument
            module = timm.create_model(recipe["architecture"], pretrained=False, num_classes=0, **kwargs).float()
            if any(isinstance(part, timm.layers.DropPath) and part.drop_prob for part in module.modules()):
                return module
    raise BackboneError(
        "drop_path= needs an architecture of timm's with stochastic depth, such as resnet50, efficientnet_b0, "
        "convnext_tiny or vit_small_patch16_224, and this backbone has none: set drop_path=0. A module of your own "
        "brings what it was built with."
    )


def _module_with_weights(recipe: dict[str, Any], weights: dict[str, torch.Tensor]) -> nn.Module:
    """Build a module and give it weights; no random numbers are drawn where the structure alone can be built."""
    module = _structure_alone(recipe) if recipe["kind"] == "timm" else None
    if module is None:
        with private_torch_rng(0):
            module = build_from_recipe(recipe)
        module.load_state_dict(weights)
    else:
        module.load_state_dict(weights, assign=True)
    return module.eval().requires_grad_(False)


def _structure_alone(recipe: dict[str, Any]) -> nn.Module | None:
    """Build a timm model without memory for its weights; None if it computes something from them while it is built."""
    import timm  # noqa: F401  # first imported where tensors are made on no device, it fails with torch 2.8

    try:
        with private_torch_rng(0), torch.device("meta"):
            module = build_from_recipe(recipe)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return None  # the ordinary way says what is wrong, if anything is
    state = module.state_dict().keys()
    computed = [name for name, buffer in module.named_buffers() if name not in state and buffer.is_meta]
    hidden = any(isinstance(value, torch.Tensor) for part in module.modules() for value in vars(part).values())
    return None if computed or hidden else module


def _plain_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "module", "structure": describe_module(recipe["skeleton"])} if "skeleton" in recipe else recipe


# What timm.create_model takes beside the settings of an architecture; some of it makes it read other files.
_NO_ARCHITECTURE = ("checkpoint_path", "cache_dir", "pretrained", "features_only", "scriptable", "exportable", "no_jit")
# Settings of an encoder by which transformers may fetch and run code.
_BRINGS_CODE = ("auto_map", "quantization_config", "_implementation", "trust_remote_code", "custom_pipelines", "kernel")
_BUILT_IN = (None, "sdpa", "eager")


def _recipe_from_plain(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe that a file holds, if it builds a network and does nothing else."""
    from timm.models import is_model

    if recipe["kind"] == "module":
        return module_recipe(module_from_description(recipe["structure"]))
    if recipe["kind"] == "text":
        odd = [
            name
            for name, value in recipe["config"].items()
            if any(part in name for part in _BRINGS_CODE) and value not in _BUILT_IN
        ]
    else:
        odd = [name for name in recipe["kwargs"] if name.startswith(_NO_ARCHITECTURE)]
        if recipe["kind"] != "timm" or not is_model(recipe["architecture"]):
            odd.append("kind, architecture")
    if odd:
        raise UnsafeFileError(f"the recipe of its network has {odd}, which do more than build a network.")
    return recipe


def reset_parameters(module: nn.Module) -> None:
    """Give a user's network a new random start, through the ``reset_parameters`` that torch's layers have.

    Raises
    ------
    BackboneError
        If a layer has parameters and no such method.
    """
    for name, part in module.named_modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
        elif next(part.parameters(recurse=False), None) is not None:
            raise BackboneError(
                f"The layer {name!r} ({type(part).__name__}) of the backbone cannot be started from scratch: "
                "give its class a method reset_parameters()."
            )


def _convert_state(module: nn.Module, convert: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Convert parameters and persistent buffers in place; other buffers are part of the structure."""
    converted: dict[nn.Parameter, nn.Parameter] = {}  # what layers share, they share afterwards
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if parameter not in converted:
                converted[parameter] = nn.Parameter(convert(parameter.detach()), parameter.requires_grad)
            part._parameters[name] = converted[parameter]
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                part._buffers[name] = convert(buffer)
