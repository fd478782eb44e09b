"""The skorch net that trains a network."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochTimer,
    GradientNormClipping,
    LRScheduler,
    PassthroughScoring,
    PrintLog,
)
from skorch.helper import predefined_split
from torch import nn

from sktl._random import private_torch_rng
from sktl.strategies import Batch
from sktl.training.activations import PrefixOnce
from sktl.training.callbacks import EarlyStop, FiniteLoss, StrategyEpochs, warmup_cosine
from sktl.training.data import TrainingData, batches
from sktl.training.network import Network
from sktl.training.prefix import FrozenPrefix


class TransferNet(NeuralNet):
    """A skorch net whose loss is weighted by row and whose parameter groups and penalty come from a strategy.

    Parameters
    ----------
    module : Network
        Trained in place.
    strategy : Strategy
        Gives parameter groups and penalty.
    weight_decay : float
        For matrices and kernels; biases and normalisation layers have none.
    cache_prefix : bool, default=True
        Whether the frozen part of the network that comes before all that is trained runs once per image, and not once
        per image and epoch. The weights after training are the same, but for rounding.
    **kwargs : dict
        skorch's own parameters.
    """

    prefix_: FrozenPrefix | None = None  # whose activations stand for images

    def __init__(
        self, module: Network, *, strategy, weight_decay: float = 0.0, cache_prefix: bool = True, **kwargs: Any
    ):
        self.strategy = strategy
        self.weight_decay = weight_decay
        self.cache_prefix = cache_prefix
        super().__init__(module, **kwargs)

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [
            ("epoch_timer", EpochTimer()),
            ("train_loss", PassthroughScoring(name="train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring(name="valid_loss")),
            ("print_log", PrintLog()),
        ]

    def get_params_for_optimizer(self, prefix, named_parameters):
        """Return the strategy's groups instead of one group of all parameters; see skorch."""
        kwargs = self.get_params_for(prefix)
        kwargs.setdefault("lr", self.lr)
        groups = self.strategy.param_groups(self.module_, kwargs["lr"])
        return (list(_split_by_decay(groups, self.weight_decay)),), kwargs

    def infer(self, x, **fit_params):
        """Run the network, or what of it comes after the frozen prefix; see skorch."""
        if self.prefix_ is None:
            return super().infer(x, **fit_params)
        return self.prefix_.finish(self.module_.backbone, self.module_, x.to(self.device))

    def get_loss(self, y_pred, y_true, X=None, training=False):
        """Return the weighted mean loss of a batch, plus the strategy's penalty in training; see skorch."""
        weight = y_true["weight"].to(y_pred.device)
        losses = self.criterion_(y_pred, y_true["target"].to(y_pred.device))
        losses = losses.flatten(start_dim=1).mean(dim=1) if losses.ndim > 1 else losses  # of several outputs
        loss = (losses * weight).mean()
        if not training:
            return loss
        batch = Batch(X, y_true["row"], weight, self.module_.take_embeddings())
        return loss + self.strategy.penalty(self.module_, batch, y_pred)

    def notify(self, method_name, **kwargs):
        """Run the callbacks; skorch's early stopping raises what Ctrl-C raises too, and is told from it; see skorch."""
        try:
            super().notify(method_name, **kwargs)
        except KeyboardInterrupt:
            stoppers = [callback for _, callback in self.callbacks_ if isinstance(callback, EarlyStopping)]
            if method_name == "on_epoch_end" and any(each.misses_ == each.patience for each in stoppers):
                raise EarlyStop from None
            raise

    def partial_fit(self, X, y=None, classes=None, **fit_params):
        """Train, and let an interrupt through: a half-trained net must not pass for a fitted one; see skorch."""
        if not self.initialized_:
            self.initialize()
        self.notify("on_train_begin", X=X, y=y)
        with suppress(EarlyStop):
            self.fit_loop(X, y)
        self.notify("on_train_end", X=X, y=y)
        return self


def _split_by_decay(groups, weight_decay: float):
    """Take weight decay off vectors: biases and the scales of normalisation layers; a group may bring its own."""
    for group in groups:
        for is_matrix in (True, False):
            params = [(name, value) for name, value in group["params"] if (value.ndim > 1) == is_matrix]
            if params:
                decay = group.get("weight_decay", weight_decay) if is_matrix else 0.0
                yield {**group, "params": params, "weight_decay": decay}


_OWN_SETTINGS = {
    *("batch_size", "callbacks", "device", "iterator_train", "iterator_valid", "lr", "max_epochs", "module"),
    *("strategy", "train_split", "verbose", "weight_decay"),
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
    settings = {
        "criterion": criterion,
        "criterion__reduction": "none",
        "optimizer": torch.optim.AdamW,
        "lr": learning_rate,
        "weight_decay": weight_decay,
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "iterator_train": batches,
        "iterator_valid": batches,
        "train_split": None,
        "device": device,
        "verbose": verbose,
        "callbacks": [("strategy", StrategyEpochs(strategy)), ("finite_loss", FiniteLoss()), *callbacks],
    }
    overrides = dict(net_params or {})
    taken = sorted(_OWN_SETTINGS.intersection(overrides))
    if taken:
        raise ValueError(
            f"The 'net_params' parameter must not hold {taken[0]!r}: the estimator sets it, through a parameter of its "
            "own where there is one (callbacks=, learning_rate=)."
        )
    return TransferNet(network, strategy=strategy, **{**settings, **overrides})


def train(
    net: TransferNet,
    data: TrainingData,
    valid: TrainingData | None,
    seed: int,
    callbacks: Sequence[tuple[str, Callback]] = (),
) -> None:
    """Train a net on a private stream of random numbers, with warm-up, cosine decay and clipped gradients.

    Parameters
    ----------
    net : TransferNet
        Trained in place.
    data : TrainingData
        Rows to learn from.
    valid : TrainingData or None
        Rows to measure on after each epoch.
    seed : int
        Decides shuffling, dropout and whatever else is random.
    callbacks : sequence of (str, skorch callback), default=()
        For this run alone.
    """
    generator = torch.Generator().manual_seed(seed)
    n_steps = len(batches(data, net.batch_size)) * net.max_epochs
    once = PrefixOnce([data] if valid is None else [data, valid])
    net.set_params(
        iterator_train__generator=generator,
        train_split=predefined_split(valid) if valid is not None else None,
        callbacks=[
            *net.callbacks,
            *callbacks,
            *([("prefix", once)] if net.cache_prefix and net.max_epochs > 1 else []),
            ("clip", GradientNormClipping(1.0)),
            (
                "schedule",
                LRScheduler("LambdaLR", lr_lambda=warmup_cosine(n_steps), step_every="batch", event_name="lr"),
            ),
        ],
    )
    device = torch.device(net.device)
    with private_torch_rng(seed, device):
        net.fit(data, None)
    _finish(net, data)


def _finish(net: TransferNet, data: TrainingData) -> None:
    """Bring a trained net to the CPU, without what only training needs; make sure that it gives numbers."""
    net.module_.cpu().eval()
    net.device = "cpu"
    net.optimizer_.state.clear()
    images, _ = data.__getitems__([0])
    with torch.inference_mode():
        finite = torch.isfinite(net.module_(images)).all()
    if not finite:
        raise FloatingPointError("Training ended with a network that gives no numbers. Try a smaller learning_rate.")
