"""The skorch net that trains a network."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochTimer,
    GradientNormClipping,
    PassthroughScoring,
    PrintLog,
)
from skorch.helper import predefined_split
from torch import nn

from sktl._random import private_torch_rng
from sktl.strategies import Batch
from sktl.training.activations import PrefixOnce
from sktl.training.callbacks import EarlyStop, FiniteLoss, Schedule, StrategyEpochs, ValidScore, warmup_cosine
from sktl.training.checkpoint import Checkpoint
from sktl.training.data import TrainingData, batches
from sktl.training.network import Network
from sktl.training.parts import Parts
from sktl.training.peers import current_peers
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
    n_parts : int, default=1
        Into how many parts a batch is split, to save memory.
    cache_prefix : bool, default=True
        Whether the frozen part of the network that comes before all that is trained runs once per image, and not once
        per image and epoch. The weights after training are the same, but for rounding.
    **kwargs : dict
        skorch's own parameters.
    """

    prefix_: FrozenPrefix | None = None  # whose activations stand for images

    def __init__(
        self,
        module: Network,
        *,
        strategy,
        weight_decay: float = 0.0,
        n_parts: int = 1,
        cache_prefix: bool = True,
        **kwargs: Any,
    ):
        self.strategy = strategy
        self.weight_decay = weight_decay
        self.n_parts = n_parts
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

    def train_step_single(self, batch, **fit_params):
        """Add up the gradients of a batch over its parts; see skorch."""
        self._set_training(True)

        def attempt(parts: list[slice]) -> dict[str, torch.Tensor]:
            self._zero_grad_optimizer()
            return _gathered(self._step_on_part(batch, part, training=True, **fit_params) for part in parts)

        step = self.parts_.run(len(batch[0]), attempt)
        return {**step, "loss": self.peers_.combine(self.module_, step["loss"], len(batch[0]))}

    def validation_step(self, batch, **fit_params):
        """Compute outputs and loss of a batch over its parts; see skorch."""
        self._set_training(False)

        def attempt(parts: list[slice]) -> dict[str, torch.Tensor]:
            with torch.no_grad():
                return _gathered(self._step_on_part(batch, part, training=False, **fit_params) for part in parts)

        step = self.parts_.run(len(batch[0]), attempt)
        return {**step, "loss": self.peers_.mean(step["loss"])}  # the same in all, for they are to stop together

    def _step_on_part(self, batch, part: slice, training: bool, **fit_params) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a part's share of the batch's loss, and its outputs; both without a graph."""
        inputs, known = batch[0][part], {name: value[part] for name, value in batch[1].items()}
        y_pred = self.infer(inputs, **fit_params)
        loss = self.get_loss(y_pred, known, X=inputs, training=training) * (len(inputs) / len(batch[0]))
        if training:
            loss.backward()
        return loss.detach(), y_pred.detach()

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
        self.parts_ = Parts(self.n_parts, torch.device(self.device))
        self.peers_ = current_peers()
        self.peers_.start_alike(self.module_)
        self.notify("on_train_begin", X=X, y=y)
        with suppress(EarlyStop):
            self.fit_loop(X, y, epochs=self.max_epochs - len(self.history))  # some may be done, in a checkpoint
        self.notify("on_train_end", X=X, y=y)
        return self


def _gathered(parts: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    losses, outputs = zip(*parts, strict=True)
    return {"loss": torch.stack(losses).sum(), "y_pred": torch.cat(outputs)}


def _split_by_decay(groups, weight_decay: float):
    """Take weight decay off vectors: biases and the scales of normalisation layers; a group may bring its own."""
    for group in groups:
        for is_matrix in (True, False):
            params = [(name, value) for name, value in group["params"] if (value.ndim > 1) == is_matrix]
            if params:
                decay = group.get("weight_decay", weight_decay) if is_matrix else 0.0
                yield {**group, "params": params, "weight_decay": decay}


_OWN_SETTINGS = {
    *("batch_size", "callbacks", "device", "iterator_train", "iterator_valid", "lr", "max_epochs", "module", "n_parts"),
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
    n_parts: int = 1,
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
        "n_parts": n_parts,
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
    checkpoint: Checkpoint | None = None,
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
    checkpoint : Checkpoint, default=None
        Keeps the state after each epoch, and goes on from there.
    """
    generator = torch.Generator().manual_seed(seed)
    peers = current_peers()
    n_steps = len(batches(data, net.batch_size)) * net.max_epochs
    # First, so that the callbacks of a user see what they recorded.
    scores = [each for each in callbacks if isinstance(each[1], ValidScore)]
    once = PrefixOnce([data] if valid is None else [data, valid])
    net.set_params(
        iterator_train__generator=generator,
        iterator_train__part=(peers.rank, peers.size),
        train_split=predefined_split(valid) if valid is not None else None,
        callbacks=[
            *scores,
            *net.callbacks,
            *(each for each in callbacks if each not in scores),
            *([("prefix", once)] if net.cache_prefix and net.max_epochs > 1 else []),
            ("clip", GradientNormClipping(1.0)),
            ("schedule", Schedule(warmup_cosine(n_steps))),
            *([] if checkpoint is None else [("checkpoint", checkpoint)]),  # last: it restores what the others made
        ],
    )
    device = torch.device(net.device)
    with private_torch_rng(seed + peers.rank, device):
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
