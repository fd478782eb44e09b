"""Training that goes on from an earlier call: which parameters may have changed meanwhile."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import torch
from sklearn.base import BaseEstimator
from torch import nn

from sktl._base import ImageEstimator
from sktl.backbones import Backbone, digest_of, fingerprint
from sktl.exceptions import BackboneError, StrategyError
from sktl.training import describe, describe_parameters

_OF_THE_NETWORK = {"backbone", "data_config", "image_size", "head"}  # and weights, which have a way of their own

_PRETRAINED = "the pretrained weights"

# What training in passes does not depend on, or not any more.
_NOT_OF_PASSES = {
    *(*_OF_THE_NETWORK, "weights", "image_shape", "channels", "root", "max_pixels", "memory", "cache_bytes"),
    *("max_epochs", "warm_start", "persist", "verbose", "checkpoint", "callbacks", "random_state"),
}


def settings_of_network(estimator: BaseEstimator) -> dict[str, str]:
    """Return hashes of the parameters that say what the network is: pickles hold them, and shall reveal no paths."""
    described = {name: _describe_network(getattr(estimator, name)) for name in sorted(_OF_THE_NETWORK)}
    described["weights"] = _describe_weights(estimator.weights)
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in described.items()}


def _describe_network(value: Any) -> str:
    """Describe networks by their weights, and fitted estimators by those of their backbone alone."""
    if isinstance(value, ImageEstimator):
        return value._as_backbone().fingerprint
    return fingerprint(value) if isinstance(value, nn.Module) else describe(value)


def _describe_weights(weights: Any) -> str:
    """Describe weights by the name of their file or by their values: the file may have moved, or be gone."""
    if isinstance(weights, str | os.PathLike):
        return os.path.basename(weights)
    return describe(dict(sorted(weights.items())) if isinstance(weights, Mapping) else weights)


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
            given = getattr(estimator, name)
            shown = "this state dict" if name == "weights" and isinstance(given, Mapping) else repr(given)
            raise ValueError(
                f"The {name!r} parameter must not change where training goes on from an earlier call (warm_start=True, "
                f"partial_fit), but the network was made with another value than {shown}. Set it back, "
                "or fit a new estimator, such as a clone."
            )


def find_pretrained(
    estimator: ImageEstimator, loaded: Backbone | None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the parameters that the backbone brought, by name, and what is to be remembered of the network.

    Parameters
    ----------
    estimator : estimator
        With ``_settings_of_network`` of the call that made the network.
    loaded : Backbone or None
        What was loaded in this call; None where training goes on, so that it has to be loaded again.

    Raises
    ------
    StrategyError
        If they are others than the ones that an earlier call referred to.
    BackboneError
        If they are not to be found any more.
    """
    reason = f"{estimator.strategy_} refers to the pretrained weights"
    try:
        backbone = estimator._load_backbone() if loaded is None else loaded
    except BackboneError as error:
        error.add_note(f"{reason}, which training that goes on needs within reach.")
        raise
    weights = dict(backbone.module.named_parameters())
    digest = digest_of(weights)
    if estimator._settings_of_network.get(_PRETRAINED, digest) != digest:
        raise StrategyError(
            f"{reason}, and those that backbone= and weights= name are others than before. Set them back, or fit a new "
            "estimator, such as a clone."
        )
    return weights, {**estimator._settings_of_network, _PRETRAINED: digest}
