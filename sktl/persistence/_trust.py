"""Which names of classes and functions in a file are looked up: scikit-learn's, sktl's own, and the caller's.

skops decides on every name before anything is imported. By itself it trusts scikit-learn's estimators, numpy's and
scipy's element-wise functions, and Python's plain types. Here are added what a fitted search holds, by exact name, and
sktl's estimators, strategies and backbones. Functions that read files or load data are in neither list.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module

from sktl.exceptions import UntrustedTypeError

Trusted = Sequence[str | type] | str | type | None

# The modules of sktl whose estimators and strategies may be named in a file; importing them does nothing else.
_OWN_MODULES = (
    "sktl.transformer",
    "sktl.finetune",
    "sktl.regression",
    "sktl.strategies",
    "sktl.scalar_mix",
    "sktl.text_statistics",
)
_OWN_TYPES = {"sktl.backbones._backbone.Backbone", "sktl.backbones._reference.ReferredWeights"}
_HARMLESS = {
    "torch.device",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.compose._column_transformer._RemainderColsList",
    "sklearn.compose._column_transformer.make_column_selector",
    "sklearn.metrics._scorer._MultimetricScorer",
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.metrics._scorer._Scorer",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils._metadata_requests.MetadataRequest",
    "sklearn.utils._metadata_requests.MethodMetadataRequest",
}

_TREES = {"sklearn.tree._tree.Tree", "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"}


def check_trust(found: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that skops may look up, of those that it does not trust by itself.

    Parameters
    ----------
    found : iterable of str
        Full names in the file.
    patterns : sequence of str
        The caller's own, from :func:`trusted_patterns`.

    Raises
    ------
    UntrustedTypeError
        If there are others; none of them was imported.
    """
    names = sorted(found)
    unknown = [name for name in untrusted_names(names) if not matches(name, patterns)]
    if unknown:
        trees = " (scikit-learn does not check the bounds of a tree's arrays: a forged one can crash.)"
        raise UntrustedTypeError(
            f"it names what is neither a plain part of scikit-learn nor one of sktl: {', '.join(unknown)}."
            f"{'' if _TREES.isdisjoint(unknown) else trees} "
            "Such a file can do what they do. If you made it yourself, or trust whoever did and know each of them, "
            "pass them to sktl.load in the list trusted=; 'torch.nn.*' stands for all layers of torch.",
            unknown,
        )
    return names


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Say whether a name is one of those trusted."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def untrusted_names(found: Iterable[str]) -> list[str]:
    """Return the names that need the caller's trust."""
    return [name for name in sorted(found) if not _is_known(name)]


def trusted_patterns(trusted: Trusted) -> list[str]:
    """Return the full names, with wildcards, that a caller trusts.

    Parameters
    ----------
    trusted : sequence of str or type, str, type or None
        As given.

    Raises
    ------
    TypeError
        If it is anything else: True would say nothing of what is trusted.
    """
    if trusted is None:
        return []
    if trusted is True or not isinstance(trusted, str | type | Sequence | set | frozenset):
        raise TypeError(
            "The 'trusted' parameter must be a list of types or of their full names (with wildcards, as in "
            f"'torch.nn.*'), got {trusted!r} instead."
        )
    each = [trusted] if isinstance(trusted, str | type) else trusted
    return [name if isinstance(name, str) else f"{name.__module__}.{name.__qualname__}" for name in each]


def _is_known(name: str) -> bool:
    return name in _OWN_TYPES or name in _HARMLESS or name in _plain_parts_of_scikit_learn() or _is_own_estimator(name)


def _is_own_estimator(name: str) -> bool:
    from sklearn.base import BaseEstimator

    module, _, cls = name.rpartition(".")
    if not any(module == own or module.startswith(f"{own}.") for own in _OWN_MODULES):
        return False
    try:
        found = getattr(import_module(module), cls, None)
    except ModuleNotFoundError:
        return False
    return isinstance(found, type) and issubclass(found, BaseEstimator) and found.__module__ == module


@cache
def _plain_parts_of_scikit_learn() -> frozenset[str]:
    """Return the names of scorers' functions, of ways to split, and of kernels: functions of numbers alone."""
    from sklearn import metrics, model_selection
    from sklearn.gaussian_process import kernels

    scores = [metrics.get_scorer(name)._score_func for name in metrics.get_scorer_names()]
    splitters = [
        value for value in vars(model_selection).values() if isinstance(value, type) and hasattr(value, "get_n_splits")
    ]
    covariances = [
        value for value in vars(kernels).values() if isinstance(value, type) and issubclass(value, kernels.Kernel)
    ]
    return frozenset(f"{each.__module__}.{each.__qualname__}" for each in (*scores, *splitters, *covariances))
