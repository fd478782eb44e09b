"""Training that goes on from an earlier call: which parameters may have changed meanwhile."""

import hashlib
from collections.abc import Mapping
from typing import Any

from sklearn.base import BaseEstimator
from torch import nn

from sktl._base import ImageEstimator
from sktl.backbones import fingerprint
from sktl.training import describe, describe_parameters

_OF_THE_NETWORK = {"backbone", "data_config", "image_size", "head"}

# What training in passes does not depend on, or not any more.
_NOT_OF_PASSES = {
    *(*_OF_THE_NETWORK, "weights", "image_shape", "channels", "root", "max_pixels", "memory", "cache_bytes"),
    *("max_epochs", "warm_start", "persist", "verbose", "checkpoint", "callbacks", "random_state"),
}


def settings_of_network(estimator: BaseEstimator) -> dict[str, str]:
    """Return fingerprints of the parameters that say what the network is: a file shall not tell where things were."""
    described = {name: _describe_network(getattr(estimator, name)) for name in sorted(_OF_THE_NETWORK)}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in described.items()}


def _describe_network(value: Any) -> str:
    """Describe what holds weights by these: where a fitted estimator keeps its embeddings, say, is no part of them."""
    if isinstance(value, ImageEstimator):
        return value._as_backbone().fingerprint
    return fingerprint(value) if isinstance(value, nn.Module) else describe(value)


def settings_of_passes(estimator: BaseEstimator) -> dict[str, str]:
    """Describe the parameters that training call by call depends on."""
    return describe_parameters(estimator, _NOT_OF_PASSES)


def check_same_network(estimator: BaseEstimator, before: Mapping[str, str]) -> None:
    """Refuse to go on with another network than the one that there is.

    Parameters
    ----------
    estimator : estimator
        With the parameters of now.
    before : mapping of str to str
        :func:`settings_of_network` of the call that made the network.

    Raises
    ------
    ValueError
        That names the parameter.
    """
    for name, value in settings_of_network(estimator).items():
        if value != before.get(name, value):
            raise ValueError(
                f"The {name!r} parameter must not change where training goes on from an earlier call (warm_start=True, "
                f"partial_fit), but the network was made with another value than {getattr(estimator, name)!r}. Set it "
                "back, or fit a new estimator, such as a clone."
            )
