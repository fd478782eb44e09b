"""What a file says about the estimator in it, so that it need not be loaded to be known."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import get_tags

_DEPTH = 12


def summarize(estimator: BaseEstimator) -> dict[str, Any]:
    """Describe a fitted estimator in JSON-able facts.

    Parameters
    ----------
    estimator : estimator
        Fitted.

    Returns
    -------
    summary : dict
        ``estimator``, ``classes``, ``networks`` (one entry per distinct network in it) and ``training_data``.
    """
    parts = list(_parts_with_networks(estimator, set(), 0))
    return {
        "estimator": " > ".join(_names(estimator)),
        "task": get_tags(estimator).estimator_type or ("transformer" if hasattr(estimator, "transform") else None),
        "classes": _plain_classes(estimator),
        "networks": list({part.backbone_.fingerprint: _describe(part) for part in parts}.values()),
        "training_data": next((part.training_data_ for part in parts if hasattr(part, "training_data_")), None),
    }


def _names(estimator: BaseEstimator) -> Iterator[str]:
    """Yield the class of an estimator, and of what it hands its work to."""
    yield type(estimator).__name__
    inner = getattr(estimator, "best_estimator_", None)
    if inner is not None:
        yield from _names(inner)
    elif hasattr(estimator, "steps"):
        yield " + ".join(type(step).__name__ for _, step in estimator.steps if isinstance(step, BaseEstimator))


def _parts_with_networks(value: Any, seen: set[int], depth: int) -> Iterator[BaseEstimator]:
    """Find the fitted estimators with a backbone, in whatever holds them."""
    if id(value) in seen or depth > _DEPTH:
        return
    if isinstance(value, BaseEstimator):
        seen.add(id(value))
        if "backbone_" in vars(value):
            yield value
        inner = vars(value).values()
    elif isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    else:
        return
    for each in inner:
        yield from _parts_with_networks(each, seen, depth + 1)


def _describe(part: BaseEstimator) -> dict[str, Any]:
    backbone = part.backbone_
    strategy = getattr(part, "strategy_", None)
    return {
        "estimator": type(part).__name__,
        "backbone": backbone.name,
        "is_local": is_local_folder(backbone.name),
        "weights_file": _weights_file(part),
        "strategy": None if strategy is None else repr(strategy),
        "input_size": backbone.data_config.get("input_size"),
        "max_length": backbone.data_config.get("max_length"),
        "width": backbone.width,
        "parameters": sum(parameter.numel() for parameter in backbone.module.parameters()),
        "trained_parameters": getattr(part, "trainable_parameters_", 0),
        "fit_seconds": round(getattr(part, "fit_seconds_", 0.0), 3),
        "fingerprint": backbone.fingerprint,
    }


def _weights_file(part: BaseEstimator) -> str | None:
    """Return the name of the file of weights that a reference asks for; where it lies is nobody's business."""
    weights = getattr(part, "weights", None)
    refers = getattr(part, "persist", None) == "reference"
    return os.path.basename(weights) if refers and weights != "pretrained" else None


def is_local_folder(name: str) -> bool:
    """Tell whether the name of a backbone means a folder here: ``text:models/mine`` may be one, or stand on the hub."""
    return name.startswith("text:") and os.path.isdir(os.path.expanduser(name.removeprefix("text:")))


def _plain_classes(estimator: BaseEstimator) -> list | None:
    classes = getattr(estimator, "classes_", None)
    if not isinstance(classes, np.ndarray) or classes.ndim != 1:
        return None
    return [label if isinstance(label, bool | int | float | str) else str(label) for label in classes.tolist()]
