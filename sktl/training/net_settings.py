"""From an estimator's parameters to the skorch net that trains its network."""

from collections.abc import Sequence
from typing import Any

import torch
from skorch.callbacks import Callback
from torch import nn

from sktl.training.averaging import Averaging
from sktl.training.callbacks import FiniteLoss, StrategyEpochs
from sktl.training.data import batches
from sktl.training.mixing import Mixing
from sktl.training.net import TransferNet
from sktl.training.network import Network

_OWN_SETTINGS = {
    *("autocast", "averaging", "batch_size", "callbacks", "device", "iterator_train", "iterator_valid", "lr"),
    *("max_epochs", "mixing", "module", "n_parts", "strategy", "train_split", "verbose", "weight_decay"),
}


def make_net(
    network: Network,
    strategy,
    *,
    criterion: type[nn.Module] = nn.CrossEntropyLoss,
    learning_rate: float,
    weight_decay: float,
    max_epochs: int,
    batch_size: int,
    n_parts: int = 1,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    criterion_params: dict[str, Any] | None = None,
    ema_decay: float | None = None,
    device: torch.device,
    verbose: int = 0,
    callbacks: Sequence[Callback] = (),
    net_params: dict[str, Any] | None = None,
) -> TransferNet:
    """Compose the skorch net for a network; nothing is trained yet.

    Parameters
    ----------
    network : Network
        Prepared by the strategy.
    strategy : Strategy
        The way of transfer.
    criterion : type of module, default=nn.CrossEntropyLoss
        Loss with a ``reduction`` parameter.
    learning_rate, weight_decay : float
        Of the head, before the schedule; of matrices and kernels.
    max_epochs, batch_size : int
        Length of training, size of a step.
    n_parts : int, default=1
        Into how many parts a step is split, to save memory.
    mixup, cutmix : float, default=0.0
        See :class:`~sktl.training.mixing.Mixing`.
    criterion_params : dict, default=None
        Of the loss.
    ema_decay : float, default=None
        See :class:`~sktl.training.averaging.Averaging`.
    device : torch.device
        Where training runs.
    verbose : int, default=0
        skorch prints one line per epoch from 1 on.
    callbacks : sequence of skorch callbacks, default=()
        Run after sktl's own.
    net_params : dict, default=None
        Overrides of skorch's parameters.

    Returns
    -------
    net : TransferNet
        Not initialized.
    """
    overrides = dict(net_params or {})
    settings = {
        **({} if "optimizer" in overrides else {"optimizer__fused": True}),  # faster, and on one core above all
        "criterion": criterion,
        "criterion__reduction": "none",
        "optimizer": torch.optim.AdamW,
        "lr": learning_rate,
        "weight_decay": weight_decay,
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "n_parts": n_parts,
        "mixing": Mixing(mixup, cutmix) if mixup or cutmix else None,
        "averaging": None if ema_decay is None else Averaging(ema_decay),
        **{f"criterion__{name}": value for name, value in (criterion_params or {}).items()},
        "iterator_train": batches,
        "iterator_valid": batches,
        "train_split": None,
        "device": device,
        "verbose": verbose,
        "callbacks": [("strategy", StrategyEpochs(strategy)), ("finite_loss", FiniteLoss()), *callbacks],
    }
    taken = sorted(_OWN_SETTINGS.intersection(overrides))
    if taken:
        raise ValueError(
            f"The 'net_params' parameter must not hold {taken[0]!r}: the estimator sets it, through a parameter of its "
            "own where there is one (callbacks=, learning_rate=)."
        )
    return TransferNet(network, strategy=strategy, **{**settings, **overrides})
