"""Weights averaged over the steps of training, by timm's exponential moving average."""

from typing import Any

from torch import nn

from sktl.embedding import ThreadLimit
from sktl.training.callbacks import Settling


class Averaging(Settling):
    """Keep a moving average of the weights; validation and the result use it.

    The average forgets faster in the first steps, so that short training is not held back by where it began.

    Parameters
    ----------
    decay : float
        How much of the average a step leaves, in the end.

    References
    ----------
    Polyak, B. T., Juditsky, A. B.: Acceleration of stochastic approximation by averaging. SIAM Journal on Control and
    Optimization, 1992.
    """

    average_ = None  # while nothing is trained

    def __init__(self, decay: float):
        self.decay = decay

    def on_train_begin(self, net, **kwargs):
        from timm.utils import ModelEmaV3

        self.step_ = 0
        self.average_ = ModelEmaV3(net.module_, decay=self.decay, use_warmup=True)

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.step_ += 1
            with ThreadLimit(1):  # the same rounding whatever the number of cores
                self.average_.update(net.module_, step=self.step_)

    def settle(self, net):
        net.module_.load_state_dict(self.average_.module.state_dict())
        self.average_ = None

    @property
    def network(self) -> nn.Module | None:
        """The network with averaged weights, in training."""
        return None if self.average_ is None else self.average_.module

    def state_dict(self) -> dict[str, Any]:
        """Return what a fit that goes on later needs."""
        return {"step": self.step_, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.step_ = state["step"]
        self.network.load_state_dict(state["network"])
