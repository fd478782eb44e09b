"""A learning rate for the task at hand, found by a short test."""

import numpy as np
import torch
from skorch.callbacks import Callback, GradientNormClipping

from sktl._random import private_torch_rng
from sktl.training.activations import prefix_once
from sktl.training.callbacks import EarlyStop, StrategyEpochs
from sktl.training.data import TrainingData, batches
from sktl.training.net import TransferNet

LOWEST, HIGHEST, N_STEPS = 1e-5, 1.0, 60
_SMOOTHING = 0.8
_DIVERGED = 4.0  # times the lowest loss
_TOLERANCE = 0.05  # of the first loss: what counts as still at its lowest
_MARGIN = 10.0  # how far below the last good rate training is safe

Curve = dict[str, list[float]]


def find_learning_rate(net: TransferNet, data: TrainingData, seed: int) -> tuple[float, Curve]:
    """Train a network for a few steps, each with a higher rate, and see how far the loss follows.

    The rates are spaced evenly on a logarithmic scale. The rate returned is a tenth of the highest one at which the
    smoothed loss was still at its lowest, before it rose again.

    Parameters
    ----------
    net : TransferNet
        Of a copy of network and strategy, not initialized, with the number of epochs of the training to come, and with
        a learning rate of 1: groups of parameters keep their proportions.
    data : TrainingData
        Rows to learn from. What a frozen prefix gives for them is left to the training to come.
    seed : int
        Decides shuffling, dropout and whatever else is random.

    Returns
    -------
    rate : float
        Of the head.
    curve : dict
        Lists "learning_rate", "loss" and "smoothed_loss", one value per step.

    Raises
    ------
    FloatingPointError
        If the loss is no number from the beginning.

    References
    ----------
    Smith, L. N.: Cyclical Learning Rates for Training Neural Networks. WACV 2017.
    """
    test = RateTest(np.geomspace(LOWEST, HIGHEST, N_STEPS).tolist())
    n_epochs = -(-N_STEPS // len(batches(data, net.batch_size)))
    prefix = prefix_once(net, max(n_epochs, net.max_epochs), data, for_later=True)
    net.set_params(
        max_epochs=n_epochs,
        iterator_train__generator=torch.Generator().manual_seed(seed),
        verbose=0,
        callbacks=[
            ("strategy", StrategyEpochs(net.strategy)),
            *prefix,
            ("clip", GradientNormClipping(1.0)),
            ("rate_test", test),
        ],
    )
    with private_torch_rng(seed, torch.device(net.device)):
        net.fit(data, None)
    if not test.curve["loss"]:
        raise FloatingPointError(f"The training loss is no number in the first step, with a learning rate of {LOWEST}.")
    return choose_rate(test.curve), test.curve


def choose_rate(curve: Curve) -> float:
    """Return a tenth of the highest rate at which the smoothed loss was still at its lowest.

    Parameters
    ----------
    curve : dict
        As :func:`find_learning_rate` returns it.
    """
    smoothed = np.array(curve["smoothed_loss"])
    low = np.flatnonzero(smoothed <= smoothed.min() + _TOLERANCE * smoothed[0])
    return curve["learning_rate"][int(low[-1])] / _MARGIN


class RateTest(Callback):
    """Raise the learning rate with each step, and stop when the loss has gone up.

    Parameters
    ----------
    rates : list of float
        One per step.
    """

    def __init__(self, rates: list[float]):
        self.rates = rates

    def on_train_begin(self, net, **kwargs):
        self.curve: Curve = {"learning_rate": [], "loss": [], "smoothed_loss": []}
        self.shares_ = [group["lr"] for group in net.optimizer_.param_groups]
        self.average_ = 0.0

    def on_batch_begin(self, net, training=False, **kwargs):
        rate = self.rates[len(self.curve["loss"])]
        for group, share in zip(net.optimizer_.param_groups, self.shares_, strict=True):
            group["lr"] = rate * share

    def on_batch_end(self, net, loss=None, training=False, **kwargs):
        value, step = float(loss), len(self.curve["loss"])
        if not np.isfinite(value):
            raise EarlyStop
        self.average_ = _SMOOTHING * self.average_ + (1 - _SMOOTHING) * value
        smoothed = self.average_ / (1 - _SMOOTHING ** (step + 1))  # as if there had always been values
        for name, number in (("learning_rate", self.rates[step]), ("loss", value), ("smoothed_loss", smoothed)):
            self.curve[name].append(number)
        if step + 1 == len(self.rates) or smoothed > _DIVERGED * min(self.curve["smoothed_loss"]):
            raise EarlyStop
