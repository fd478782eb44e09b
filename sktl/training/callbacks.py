"""What happens around the steps of the training loop, as skorch callbacks."""

import copy
import math
from numbers import Real
from typing import Any

from skorch.callbacks import Callback, LRScheduler


def warmup_cosine(n_steps: int, warmup: float = 0.1, floor: float = 0.01):
    """Return a factor for the learning rate per step: a linear rise, then half a cosine down to ``floor``.

    Parameters
    ----------
    n_steps : int
        Number of steps in all.
    warmup : float, default=0.1
        Share of the steps in which the learning rate rises.
    floor : float, default=0.01
        Factor at the end.

    References
    ----------
    Loshchilov, I., Hutter, F.: SGDR: Stochastic Gradient Descent with Warm Restarts. ICLR 2017.
    """
    n_warmup = max(1, round(warmup * n_steps))

    def factor(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / (n_warmup + 1)
        progress = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def callback_of(entry: Any) -> Any:
    """Return the callback of an entry in a list of skorch's, which may be a pair of a name and a callback.

    Parameters
    ----------
    entry : callback, its class, or (str, callback or class)
        Returned as it is where it is no pair.
    """
    return entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry


def sets_rates(entry: Any) -> bool:
    """Tell whether an entry in a list of callbacks is a schedule for the learning rate."""
    callback = callback_of(entry)
    return isinstance(callback, LRScheduler) or callback is LRScheduler


class Settling(Callback):
    """A callback that may replace the network's weights at the end of training, before ``on_train_end``."""

    def settle(self, net) -> None:
        """Put the final weights into ``net.module_``."""
        raise NotImplementedError


class StrategyEpochs(Callback):
    """Let the strategy change what is trained at the beginning of each epoch."""

    def __init__(self, strategy):
        self.strategy = strategy

    def on_epoch_begin(self, net, **kwargs):
        self.strategy.on_epoch_begin(net.module_, len(net.history) - 1)
        net.module_.refresh_frozen()


class EpochTasks(Callback):
    """Tell an observer when epochs begin and end, and stop where it says so.

    Parameters
    ----------
    begin : callable
        Called without arguments.
    end : callable
        Takes the network in training; returns whether to stop.
    """

    def __init__(self, begin, end):
        self.begin = begin
        self.end = end

    def on_epoch_begin(self, net, **kwargs):
        self.begin()

    def on_epoch_end(self, net, **kwargs):
        if self.end(net.evaluated_network):
            raise EarlyStop


class EpochReport(Callback):
    """Tell somebody the figures of each epoch.

    Parameters
    ----------
    report : callable
        Takes a dict of the epoch's number, its losses and its score, all plain numbers.
    """

    def __init__(self, report):
        self.report = report

    def on_epoch_end(self, net, **kwargs):
        self.report({name: value for name, value in net.history[-1].items() if _is_figure(name, value)})


def _is_figure(name: str, value) -> bool:
    """Tell figures from skorch's notes on which of them is the best so far."""
    return isinstance(value, Real) and not isinstance(value, bool) and not name.endswith("_best")


class NextViews(Callback):
    """Let the training data give other variants of its images in each epoch."""

    def __init__(self, data):
        self.data = data

    def on_epoch_begin(self, net, **kwargs):
        self.data.epoch = len(net.history) - 1

    def on_train_end(self, net, **kwargs):
        self.data = None


class FiniteLoss(Callback):
    """Stop with an error as soon as the loss is no number."""

    def on_batch_end(self, net, loss=None, training=False, **kwargs):
        if training and not math.isfinite(loss.item()):
            rates = ", ".join(f"{group['lr']:.3g}" for group in net.optimizer_.param_groups)
            raise FloatingPointError(
                f"The training loss is {loss.item()} in epoch {len(net.history)} (learning rates {rates}). "
                "Try a smaller learning_rate."
            )


class ValidScore(Callback):
    """Record a score on the validation rows, from the outputs that their loss was computed from.

    Parameters
    ----------
    name : str
        Column of the history.
    score : callable
        Takes outputs and targets of a batch, returns one number per row.
    """

    def __init__(self, name: str, score):
        self.name = name
        self.score = score

    def on_epoch_begin(self, net, **kwargs):
        self.total_, self.weight_ = 0.0, 0.0

    def on_batch_end(self, net, batch=None, training=False, y_pred=None, **kwargs):
        if training:
            return
        weight = batch[1]["weight"].to(y_pred.device)
        self.total_ += float((self.score(y_pred, batch[1]["target"].to(y_pred.device)) * weight).sum())
        self.weight_ += float(weight.sum())

    def on_epoch_end(self, net, **kwargs):
        if self.weight_:
            net.history.record(self.name, self.total_ / self.weight_)


class StopEarly(Settling):
    """Stop when the validation loss has not improved for a while, and go back to the best weights.

    Parameters
    ----------
    n_iter_no_change : int
        Epochs without improvement after which training stops.
    tol : float
        An improvement smaller than this is none.
    """

    def __init__(self, n_iter_no_change: int, tol: Real):
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol

    def on_train_begin(self, net, **kwargs):
        self.best_loss_, self.best_epoch_, self.best_state_ = math.inf, 0, None

    def on_epoch_end(self, net, **kwargs):
        loss, epoch = float(net.history[-1, "valid_loss"]), net.history[-1, "epoch"]
        if loss < self.best_loss_ - self.tol or self.best_state_ is None:
            self.best_loss_, self.best_epoch_ = loss, epoch
            self.best_state_ = copy.deepcopy(net.evaluated_network.state_dict())
        elif epoch - self.best_epoch_ >= self.n_iter_no_change:
            raise EarlyStop

    def settle(self, net):
        if self.best_state_ is not None:
            net.module_.load_state_dict(self.best_state_)
            self.best_state_ = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a fit that goes on later needs."""
        return {"loss": self.best_loss_, "epoch": self.best_epoch_, "network": self.best_state_}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.best_loss_, self.best_epoch_, self.best_state_ = state["loss"], state["epoch"], state["network"]


class EarlyStop(Exception):  # noqa: N818 -- a signal, not an error
    """Ends the training loop in good order."""
