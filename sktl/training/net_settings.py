"""From an estimator's parameters to the skorch net that trains its network."""

from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter, signature
from typing import Any

import torch
from skorch.callbacks import Callback, EarlyStopping, EpochScoring
from torch import nn

from sktl.training.averaging import Averaging
from sktl.training.callbacks import FiniteLoss, StrategyEpochs, callback_of
from sktl.training.data import batches
from sktl.training.mixing import Mixing
from sktl.training.net import TransferNet
from sktl.training.network import Network

_ANOTHER_WAY = {"optimizer", "optimizer__foreach", "optimizer__differentiable"}  # than AdamW's fused steps

# What skorch calls the estimator's own parameters, or what follows from them.
_SET_BY = {
    "autocast": "amp",
    "averaging": "ema_decay",
    "batch_size": "batch_size",
    "callbacks": "callbacks",
    "criterion__label_smoothing": "label_smoothing",
    "criterion__label_weight": "class_weight",
    "device": "device",
    "iterator_train__batch_size": "batch_size",
    "iterator_valid__batch_size": "batch_size",
    "lr": "learning_rate",
    "max_epochs": "max_epochs",
    "mixing": "mixup",
    "module": "backbone",
    "n_parts": "gradient_accumulation",
    "optimizer__lr": "learning_rate",
    "optimizer__param_groups": "strategy",
    "optimizer__weight_decay": "weight_decay",
    "strategy": "strategy",
    "train_split": "early_stopping",
    "verbose": "verbose",
    "warm_start": "warm_start",
    "weight_decay": "weight_decay",
}
# What training relies on, with all that belongs to it: a loss for each row, batches of even size, the network.
_FIXED = ("criterion__reduction", "dataset", "iterator_train", "iterator_valid", "module")


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
        A user's.
    net_params : dict, default=None
        Overrides of skorch's parameters.

    Returns
    -------
    net : TransferNet
        Not initialized.

    Raises
    ------
    ValueError
        If an override is of something that a parameter of the estimator says, or that is not to be changed, or
        unknown; if a loss is an instance, or cannot be given what it needs; if a callback is none of skorch's, scores
        epochs, or brings back other weights than the averaged ones.
    """
    overrides = dict(net_params or {})
    _check_overrides(overrides)
    if "criterion" in overrides:
        _check_criterion(overrides["criterion"], criterion_params or {})
    _check_callbacks(callbacks, is_averaged=ema_decay is not None)
    settings = {
        **({} if _ANOTHER_WAY & overrides.keys() else {"optimizer__fused": True}),  # faster, on one core above all
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
    return TransferNet(network, strategy=strategy, **{**settings, **overrides})


def _check_criterion(criterion: Callable, params: Iterable[str]) -> None:
    if isinstance(criterion, nn.Module):
        raise ValueError(
            f"The 'net_params' parameter must hold a class as 'criterion', got {criterion!r} instead: the loss is made "
            "anew, with reduction='none'. Give the class, and its parameters as 'criterion__<parameter>'."
        )
    known = signature(criterion).parameters
    takes_all = any(each.kind is Parameter.VAR_KEYWORD for each in known.values())
    for name in ("reduction", *params):
        if name in known or takes_all:
            continue
        set_by = _SET_BY.get(f"criterion__{name}")
        way_out = f"Leave {set_by}= at its default." if set_by else "With 'none' it is to return a loss for each row."
        shown = getattr(criterion, "__name__", repr(criterion))
        raise ValueError(f"The 'net_params' parameter holds {shown} as 'criterion', which takes no {name!r}. {way_out}")


def _check_callbacks(callbacks: Iterable, is_averaged: bool) -> None:
    for each in callbacks:
        callback = callback_of(each)
        is_class = isinstance(callback, type) and issubclass(callback, Callback)
        if not is_class and not isinstance(callback, Callback):
            raise ValueError(
                "The 'callbacks' parameter must hold callbacks of skorch, or pairs of a name and a callback; got "
                f"{each!r} instead."
            )
        if isinstance(callback, EpochScoring) or (is_class and issubclass(callback, EpochScoring)):
            raise ValueError(
                "EpochScoring in callbacks= scores rows and targets in a form that training does not have. Take "
                "sklearn.callback.ScoringMonitor through set_callbacks instead, or what history_ says of X_val."
            )
        if is_averaged and isinstance(callback, EarlyStopping) and callback.load_best:
            raise ValueError(
                "EarlyStopping(load_best=True) in callbacks= goes back to weights that are not averaged, and ema_decay "
                "asks for the average. Take early_stopping=True instead, which goes back to the best average."
            )


def _check_overrides(overrides: Iterable[str]) -> None:
    """Refuse what would be ignored, or would silently hold in place of a parameter."""
    known = {name for kind in TransferNet.__mro__[:-1] for name in signature(kind).parameters}
    for name in overrides:
        if name.partition("__")[0] not in known:
            raise ValueError(f"The 'net_params' parameter holds {name!r}, which no net of skorch's has.")
        if name in _SET_BY:
            raise ValueError(
                f"The 'net_params' parameter must not hold {name!r}: give the estimator {_SET_BY[name]}= instead."
            )
        if any(name == fixed or name.startswith(f"{fixed}__") for fixed in _FIXED):
            raise ValueError(
                f"The 'net_params' parameter must not hold {name!r}: training relies on it as it is, and no parameter "
                "sets it."
            )
