"""Strategies that train few numbers: small added matrices, or biases and scales."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from numbers import Integral, Real
from typing import ClassVar

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from sktl._deps import import_extra
from sktl.backbones import add_low_rank
from sktl.exceptions import StrategyError
from sktl.strategies._tuned import PROBE, SCALE, SlowBackbone
from sktl.strategies.base import TrainableNetwork

_ADAPTER = "default"  # peft's own name for the only adapter


class LoRA(SlowBackbone):
    """Fit the head, then train it and low-rank additions to the backbone's layers; the backbone's own weights stay.

    Each layer of weight ``W`` computes with ``W + alpha / rank * B @ A``, where ``A`` and ``B`` are small and ``B``
    starts at zero. After training the products are added to the weights, so that the network that predicts is as large
    and as fast as before. Needs the package peft (``pip install 'sktl[peft]'``).

    ``partial_fit`` trains the same additions call by call. Up to rounding, they survive a pickle with
    ``warm_start=True``, and changes of parameters that keep their shapes. Otherwise, and after a call that failed,
    training continues with new additions on top of the weights as they are, and the optimizer starts anew for them.

    Parameters
    ----------
    rank : int, default=8
        Inner width of the additions.
    alpha : float, default=16.0
        Their scale, divided by ``rank``.
    dropout : float, default=0.0
        Share of a layer's inputs that its addition does not see in a training step.
    target_modules : {"all", "linear", "conv"} or list of str, default="all"
        Which layers have an addition: all linear layers and two-dimensional convolutions, those of one kind, or the
        layers of these names (in full, or their last parts: ``"attn.qkv"``). Grouped convolutions have none, since peft
        cannot merge them; nor have layers whose weight is used elsewhere too, or computed from others (spectral norm).
    C : float, default=10.0
        Inverse strength of the L2 penalty of the head's first fit.
    backbone_lr_scale : float, default=0.5
        Learning rate of the additions, as a fraction of the head's.

    See Also
    --------
    BitFit : Trains numbers that are there already.

    References
    ----------
    Hu, E. J., Shen, Y., Wallis, P., et al.: LoRA: Low-Rank Adaptation of Large Language Models. ICLR 2022.

    Examples
    --------
    >>> from sktl.strategies import LoRA
    >>> LoRA(rank=4, target_modules="linear")
    LoRA(rank=4, target_modules='linear')
    """

    fits_head_first = True

    _parameter_constraints: ClassVar[dict] = {
        "rank": [Interval(Integral, 1, None, closed="left")],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "target_modules": [StrOptions({"all", "linear", "conv"}), list],
        **PROBE,
        **SCALE,
    }

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        target_modules: str | list[str] = "all",
        C: float = 10.0,
        backbone_lr_scale: float = 0.5,
    ):
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.target_modules = target_modules
        self.C = C
        self.backbone_lr_scale = backbone_lr_scale

    def prepare(self, network: TrainableNetwork) -> None:
        peft = import_extra("peft", extra="peft", caller="strategy='lora'")
        names = self._targets(network.backbone)
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules="|".join(re.escape(name) for name in names),  # a string is matched in full, a list is not
        )
        network.backbone.requires_grad_(False)
        peft.inject_adapter_in_model(config, network.backbone)
        for _, layer in _adapted(network.backbone):
            layer.__class__ = _with_whole_weight(type(layer))
            base, down = layer.get_base_layer(), layer.lora_A[_ADAPTER]
            if isinstance(base, nn.Conv2d):
                down.dilation = base.dilation  # which peft forgets; it has no influence on the weights' shape

    def _targets(self, backbone: nn.Module) -> list[str]:
        """Return the names of the layers that get an addition."""
        kinds = (nn.Conv2d,) if self.target_modules == "conv" else (nn.Linear, nn.Conv2d)
        kinds = (nn.Linear,) if self.target_modules == "linear" else kinds
        uses = Counter(id(parameter) for _, parameter in backbone.named_parameters(remove_duplicate=False))
        names = [
            name
            for name, part in backbone.named_modules()
            if type(part) in kinds and _is_mergeable(part) and uses[id(part.weight)] == 1
        ]
        if not isinstance(self.target_modules, str):
            wanted = tuple(self.target_modules)
            names = [name for name in names if any(f".{name}".endswith(f".{ending}") for ending in wanted)]
        if not names:
            raise StrategyError(
                f"LoRA(target_modules={self.target_modules!r}) finds no layer in the backbone that it can add to: it "
                "takes torch's own nn.Linear, and nn.Conv2d with groups=1, whose weight is theirs alone."
            )
        return names

    def keep(self, network: TrainableNetwork) -> dict[str, torch.Tensor]:
        return {
            name: value.detach().clone()
            for part, layer in _adapted(network.backbone)
            for name, value in _addition(part, layer).items()
        }

    def take_up(self, network: TrainableNetwork, kept: dict[str, torch.Tensor]) -> None:
        for part, layer in _adapted(network.backbone):
            own = _addition(part, layer)
            if any(name not in kept or kept[name].shape != value.shape for name, value in own.items()):
                continue
            for name, value in own.items():
                value.data.copy_(kept[name])
            base, (left, right) = layer.get_base_layer(), map(torch.Tensor.detach, _factors(layer))
            base.weight.data = add_low_rank(base.weight.data, -left, right)  # finish() has added them

    def finish(self, network: TrainableNetwork) -> None:
        for name, layer in list(_adapted(network.backbone)):
            base, (left, right) = layer.get_base_layer(), map(torch.Tensor.detach, _factors(layer))
            base.weight.data = add_low_rank(base.weight.data, left, right)
            network.low_rank[f"{name}.weight"] = (left, right)
            network.backbone.set_submodule(name, base)


def _is_mergeable(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (layer.groups == 1 and layer.padding_mode == "zeros")


def _adapted(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers that have an addition, with their names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, part in backbone.named_modules():
        if isinstance(part, BaseTunerLayer):
            yield name, part


def _addition(name: str, layer: nn.Module) -> dict[str, nn.Parameter]:
    """Return the two matrices of a layer's addition, by their names in the network."""
    sides = {"lora_A": layer.lora_A, "lora_B": layer.lora_B}
    return {f"backbone.{name}.{side}.{_ADAPTER}.weight": parts[_ADAPTER].weight for side, parts in sides.items()}


def _factors(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the matrices whose product a layer's addition is."""
    left = layer.lora_B[_ADAPTER].weight.flatten(1) * layer.scaling[_ADAPTER]
    return left, layer.lora_A[_ADAPTER].weight.flatten(1)


@cache
def _with_whole_weight(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a kind of adapted layer whose ``weight`` has the addition in it.

    The attention of BEiT, EVA and Swin V2 takes the weight of a layer that it never calls; peft shows it the old one.
    """

    def weight(layer: nn.Module) -> torch.Tensor:
        return add_low_rank(layer.get_base_layer().weight, *_factors(layer))

    return type(kind.__name__, (kind,), {"weight": property(weight)})


class BitFit(SlowBackbone):
    """Fit the head, then train it and the backbone's biases, or its normalisation layers, alone.

    Parameters
    ----------
    train : {"bias", "norm", "bias_and_norm"}, default="bias"
        What is trained of the backbone: all biases (those of normalisation layers too), scale and bias of the
        normalisation layers, or both. Running statistics of batch normalisation stay as they are.
    C : float, default=10.0
        Inverse strength of the L2 penalty of the head's first fit.
    backbone_lr_scale : float, default=0.5
        Learning rate of the trained part of the backbone, as a fraction of the head's.

    See Also
    --------
    LoRA : Trains numbers that it adds.

    References
    ----------
    Ben Zaken, E., Goldberg, Y., Ravfogel, S.: BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based
    Masked Language-models. ACL 2022.

    Frankle, J., Schwab, D. J., Morcos, A. S.: Training BatchNorm and Only BatchNorm: On the Expressive Power of Random
    Features in CNNs. ICLR 2021.

    Examples
    --------
    >>> from sktl.strategies import BitFit
    >>> BitFit(train="norm")
    BitFit(train='norm')
    """

    fits_head_first = True

    _parameter_constraints: ClassVar[dict] = {
        "train": [StrOptions({"bias", "norm", "bias_and_norm"})],
        **PROBE,
        **SCALE,
    }

    def __init__(self, train: str = "bias", C: float = 10.0, backbone_lr_scale: float = 0.5):
        self.train = train
        self.C = C
        self.backbone_lr_scale = backbone_lr_scale

    def prepare(self, network: TrainableNetwork) -> None:
        network.backbone.requires_grad_(False)
        chosen = [
            parameter
            for part in network.backbone.modules()
            for name, parameter in part.named_parameters(recurse=False)
            if ("bias" in self.train and name.endswith("bias")) or ("norm" in self.train and _is_norm(part))
        ]
        if not chosen:
            raise StrategyError(
                f"BitFit(train={self.train!r}) finds nothing to train: the backbone has no such layers."
            )
        for parameter in chosen:
            parameter.requires_grad_(True)


def _is_norm(part: nn.Module) -> bool:
    """Tell by the name of the class: many networks bring a normalisation of their own, such as an older RMSNorm."""
    is_named_so = any("norm" in kind.__name__.lower() for kind in type(part).__mro__)
    return is_named_so and all(next(child.parameters(), None) is None for child in part.children())
