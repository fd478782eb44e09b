"""The network in training: a copy of the backbone, and a new head."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sktl._random import private_torch_rng
from sktl.backbones import Backbone, OriginalHead, build_from_recipe, layer_groups, reset_parameters
from sktl.exceptions import StrategyError


class Network(nn.Module):
    """A backbone and a head; what is frozen stays in eval mode while the rest trains.

    Parameters
    ----------
    backbone : nn.Module
        Maps normalised images of shape (n, 3, height, width), or tokens of shape (n, length), to embeddings of shape
        (n, width). Owned by the network.
    head : nn.Module
        Maps embeddings to outputs of shape (n, n_outputs).
    mean, std : list of float
        Per channel; 8-bit images are normalised with them.
    updates_batch_norm : bool, default=False
        Whether trained batch normalisation layers follow the statistics of the new data.
    original_head : nn.Module, default=None
        Maps embeddings to the old task's outputs; trained by the strategy's penalty.
    dropout : float, default=0.0
        Share of the embedding's values that the head does not see in a training step.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        mean,
        std,
        updates_batch_norm: bool = False,
        original_head: nn.Module | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.original_head = original_head
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.updates_batch_norm = updates_batch_norm
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self._always_eval: list[nn.Module] = []
        self.low_rank: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # see sktl.backbones.add_low_rank
        self._embeddings: torch.Tensor | None = None

    @property
    def layer_groups(self) -> list[list[str]]:
        """Names of the backbone's parameters by depth; the first group is next to the input."""
        return layer_groups(self.backbone)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        embeddings = self.backbone(self.normalise(images))
        self._embeddings = embeddings if self.training else None
        return self.head(self.dropout(embeddings))

    def take_embeddings(self) -> torch.Tensor | None:
        """Hand over what the head was given in the last training step, and let go of it."""
        embeddings, self._embeddings = self._embeddings, None
        return embeddings

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Turn 8-bit images of shape (n, height, width, 3) into the backbone's input; other input is ready already."""
        if images.dtype != torch.uint8:
            return images
        return (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    def refresh_frozen(self) -> None:
        """Find out anew which modules are frozen; to be called when ``requires_grad`` has changed."""
        self._always_eval = [*self._frozen_modules(self.backbone), *_between_frozen(self.backbone)]
        self.train(self.training)

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        for module in self._always_eval:
            module.training = False
        return self

    def _frozen_modules(self, module: nn.Module):
        if _is_trained(module) is False:
            yield from module.modules()
            return
        if isinstance(module, nn.modules.batchnorm._NormBase) and not self.updates_batch_norm:  # or by instance
            yield module
        for child in module.children():
            yield from self._frozen_modules(child)


def _between_frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Yield layers without parameters, such as dropout, whose neighbours on both sides are frozen."""
    leaves = [part for part in module.modules() if not any(True for _ in part.children())]
    trained = [_is_trained(leaf) for leaf in leaves]
    for place, leaf in enumerate(leaves):
        if trained[place] is None:
            before = next((known for known in reversed(trained[:place]) if known is not None), None)
            after = next((known for known in trained[place:] if known is not None), None)
            if before is False and after is False:
                yield leaf


def _is_trained(module: nn.Module) -> bool | None:
    """Return whether any parameter is trained, or None if there are none."""
    parameters = list(module.parameters())
    return any(parameter.requires_grad for parameter in parameters) if parameters else None


def build_network(
    backbone: Backbone,
    head: nn.Module,
    strategy,
    seed: int,
    *,
    goes_on: bool = False,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Network:
    """Copy a backbone, put a head on it, and let the strategy choose what is trained.

    Parameters
    ----------
    backbone : Backbone
        Shared, and left as it is.
    head : nn.Module
        Becomes part of the network.
    strategy : Strategy
        Prepares the network.
    seed : int
        For everything random: the backbone's start, where the strategy starts from scratch, and what it adds.
    goes_on : bool, default=False
        Whether training goes on from the backbone's weights, whatever the strategy starts from otherwise.
    dropout : float, default=0.0
        Share of the embedding's values that the head does not see in a training step.
    drop_path : float, default=0.0
        Rate of stochastic depth, where the strategy trains the backbone.

    Returns
    -------
    network : Network
        On the CPU, in eval mode. A backbone that is not trained stays shared.
    """
    if not strategy.trains_backbone:
        return assemble(backbone.module, backbone, head, strategy.updates_batch_norm, dropout).eval()
    with private_torch_rng(seed):
        module = build_from_recipe(backbone.recipe, drop_path)
        if strategy.starts_pretrained or goes_on:
            module.load_state_dict(backbone.module.state_dict())
        elif backbone.recipe["kind"] == "module":
            reset_parameters(module)
        network = assemble(module, backbone, head, strategy.updates_batch_norm, dropout)
        if strategy.needs_original_head:
            network.original_head = copy.deepcopy(_original_head(backbone, strategy).module)
        network.requires_grad_(True)
        strategy.prepare(network)
    network.eval()
    network.refresh_frozen()
    return network


def check_steps(network: nn.Module, example: torch.Tensor, n_rows: int, batch_size: int, n_parts: int = 1) -> None:
    """Refuse, before anything is trained, steps of one row with a network that cannot be trained on one.

    Parameters
    ----------
    network : nn.Module
        What is trained, on the CPU; left as it is.
    example : tensor of shape (1, ...)
        What it takes for one row.
    n_rows : int
        Of an epoch.
    batch_size : int
        Upper bound of a batch's size.
    n_parts : int, default=1
        Into how many parts a batch is split.

    Raises
    ------
    ValueError
        If it can be run on two rows in training, but not on one, and a step or a part of it has one.
    """
    smallest = n_rows // -(-n_rows // batch_size)
    if smallest // min(n_parts, smallest) > 1:
        return
    trial = copy.deepcopy(network).train()
    with private_torch_rng(0), torch.no_grad():
        error = _failure(trial, example)
        if error is None or _failure(trial, torch.cat([example, example])) is not None:
            return
    raise ValueError(
        f"With {n_rows} different rows, batch_size={batch_size} and gradient_accumulation={n_parts} a network is at "
        f"times trained on one row alone, and this one cannot be: {error} Give a larger batch_size or more rows, or "
        "layers that compute no statistics over a batch."
    ) from error


def check_trained(network: Network, example: torch.Tensor) -> None:
    """Refuse, before anything is trained, a strategy whose trained part of the backbone has no influence on its output.

    Parameters
    ----------
    network : Network
        Prepared by the strategy, on the CPU and in eval mode.
    example : tensor of shape (1, ...)
        What it takes for one row.

    Raises
    ------
    StrategyError
        If parameters of the backbone are to be trained, and no gradient reaches any.
    """
    trained = [name for name, parameter in network.backbone.named_parameters() if parameter.requires_grad]
    if not trained or _gives_gradients(network.backbone, example):
        return
    if _gives_gradients(copy.deepcopy(network).train().backbone, torch.cat([example, example])):
        return
    shown = ", ".join(trained[:3]) + (", ..." if len(trained) > 3 else "")
    raise StrategyError(
        f"No gradient reaches what is to be trained of the backbone ({shown}): its output does not depend on it, or is "
        "computed without gradients. Take layers that it does not use out of the module, and torch.no_grad, "
        "torch.inference_mode and detach() out of its forward, or train other layers."
    )


def _gives_gradients(backbone: nn.Module, rows: torch.Tensor) -> bool:
    with private_torch_rng(0):
        return backbone(rows).requires_grad


def _failure(network: nn.Module, rows: torch.Tensor) -> Exception | None:
    """Return what a network raises for some rows, if anything; its layers may be the user's own."""
    try:
        network(rows)
    except Exception as error:
        return error
    return None


def _original_head(backbone: Backbone, strategy) -> OriginalHead:
    if backbone.original_head is None:
        raise StrategyError(
            f"{type(strategy).__name__} needs the classifier of the old task, and the backbone {backbone.name!r} "
            "brings none. Give a published network, a file of weights that holds a classifier, or a fitted "
            "FineTuneClassifier as backbone=."
        )
    return backbone.original_head


def assemble(
    module: nn.Module, backbone: Backbone, head: nn.Module, updates_batch_norm: bool, dropout: float = 0.0
) -> Network:
    """Put a head on a backbone's module."""
    config: dict[str, Any] = backbone.data_config
    scaling = config.get("mean", [0.0]), config.get("std", [1.0])  # texts have none
    return Network(module, head, *scaling, updates_batch_norm, dropout=dropout)


def trained_backbone(backbone: Backbone, network: Network) -> Backbone:
    """Freeze what a network's backbone has become, as a backbone of its own.

    Parameters
    ----------
    backbone : Backbone
        What training started from.
    network : Network
        After training; its backbone is shared with the result.
    """
    network.cpu().eval()
    return Backbone.from_module(
        backbone.name, network.backbone, backbone.recipe, backbone.data_config, network.low_rank
    )


def restore_network(backbone: Backbone, strategy, head: nn.Module) -> Network:
    """Put a head that was fitted before on a backbone.

    Parameters
    ----------
    backbone : Backbone
        As it was after training; shared with the result.
    strategy : Strategy
        The one that trained it.
    head : nn.Module
        Becomes part of the network.
    """
    return assemble(backbone.module, backbone, head, strategy.updates_batch_norm).eval()
