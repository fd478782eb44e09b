"""What is kept of a skorch net when it goes into a pickle or a file: numbers, no optimizer and no device."""

import copy
from typing import Any

import numpy as np
from skorch.callbacks import Callback
from skorch.history import History

from sktl.training.callbacks import callback_of


def plain_history(net) -> list[dict[str, Any]]:
    """Return a net's history as plain dicts and numbers.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialized.
    """
    return [_plain(epoch) for epoch in net.history]


def put_history(net, epochs: list[dict[str, Any]]) -> None:
    """Give a net the history of another; see :func:`plain_history`."""
    net.history = History(epochs)


def plain_callbacks(callbacks: list) -> list:
    """Return copies of callbacks without what they learned in training: tensors, schedulers, the net.

    Parameters
    ----------
    callbacks : list of skorch callbacks, or pairs of a name and a callback
        Left as they are. What is no instance is returned as it is.
    """
    return [_without_run(each) if callback_of(each) is each else (each[0], _without_run(each[1])) for each in callbacks]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _without_run(callback: Any) -> Any:
    if not isinstance(callback, Callback):
        return callback
    own = copy.copy(callback)
    for name in [name for name in vars(own) if name.endswith("_")]:  # skorch's sign for what training sets
        delattr(own, name)
    return own
