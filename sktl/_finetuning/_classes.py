"""Classes, or labels in columns, and what of them the network should say."""

from numbers import Real

import numpy as np
from scipy.sparse import issparse
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_y

from sktl.training import Targets


class ClassTargets:
    """The methods of :class:`TrainingRows` that say what y is, for classes, or for labels in columns of 0 and 1.

    Attributes
    ----------
    multilabel_ : bool
        Whether y has a column for each label.
    _label_weight : ndarray of shape (n_labels, 2) or None
        How much the loss of a row counts that has not the label, and of one that has it.
    """

    _label_weight: np.ndarray | None = None

    @property
    def _is_multilabel(self) -> bool:
        return getattr(self, "multilabel_", False)

    def _check_y(self, y) -> np.ndarray:
        if _has_columns(y) and type_of_target(y, input_name="y") == "multilabel-indicator":
            return _check_indicators(_check_y(y, multi_output=True, y_numeric=False, estimator=self))
        y = _check_y(y, multi_output=False, y_numeric=False, estimator=self)
        check_classification_targets(y)
        return y

    def _learn_targets(self, y, weight, goes_on) -> Targets:
        multilabel = y.ndim == 2
        classes = np.arange(y.shape[1]) if multilabel else np.unique(y)
        if goes_on and (multilabel != self._is_multilabel or not np.array_equal(classes, self.classes_)):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. Previously "
                f"got {self.classes_}, `y` has {classes}"
            )
        self.classes_, self.multilabel_ = classes, multilabel
        self._refuse_one_class("y")
        return self._weighted_targets(y, weight)

    def _refuse_one_class(self, source: str) -> None:
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes in {source}, got 1 class instead: "
                f"{self.classes_.tolist()[0]!r}."
            )

    def _weighted_targets(self, y, weight) -> Targets:
        """Turn y into what the network should say, with the weights of classes that are asked for."""
        known = self._known_targets(y, weight, "y")
        self._label_weight = None
        if self._is_multilabel:
            self._label_weight = label_weights(self.class_weight, y, weight)
            return known
        if isinstance(self.class_weight, list):
            raise ValueError(
                "The 'class_weight' parameter must be a dict, 'balanced' or None where y has one label per row; a list "
                "of dicts is for labels in columns."
            )
        if isinstance(self.class_weight, dict):
            _check_class_weight(self.class_weight, "class_weight")
        class_weight = compute_class_weight(self.class_weight, classes=self.classes_, y=y, sample_weight=weight)
        if not class_weight[known.values].any():
            raise ValueError(f"The 'class_weight' parameter leaves no row with weight: {self.class_weight!r}.")
        return Targets(known.values, weight, class_weight)

    def _known_targets(self, y, weight, name) -> Targets:
        if (y.shape[1:] != self.classes_.shape) if self._is_multilabel else y.ndim != 1:
            expected = f"(n, {len(self.classes_)})" if self._is_multilabel else "(n,)"
            raise ValueError(f"{name} has shape {y.shape}; expected {expected}, as in the first call.")
        if self._is_multilabel:
            return Targets(y.astype(np.float32), weight)
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            source = "classes does" if name == "y" else "y does"
            raise ValueError(f"{name} holds labels that {source} not: {unknown[:5].tolist()}.")
        return Targets(np.searchsorted(self.classes_, y), weight)

    def _targets_of_pass(self, y, weight, first) -> Targets:
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight 'balanced' is not supported for partial_fit. In order to use 'balanced' weights, use "
                "compute_class_weight('balanced', classes=classes, y=y). Pass dict(zip(classes, weights)) of the "
                "resulting weights as the class_weight parameter."
            )
        if first:
            self._refuse_one_class("classes")
            self.multilabel_ = y.ndim == 2
            if self.multilabel_ and not np.array_equal(self.classes_, np.arange(y.shape[1])):
                raise ValueError(f"classes must be range({y.shape[1]}) where y has a column for each label.")
        return self._weighted_targets(y, weight)

    def _n_outputs(self) -> int:
        return len(self.classes_)

    def _strata(self, targets) -> np.ndarray | None:
        return None if self._is_multilabel else targets.values


def label_weights(class_weight, y: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """Return how much rows without and with each label count.

    Parameters
    ----------
    class_weight : list of dict, "balanced" or None
        One dict per label, with keys 0 and 1; "balanced" lets both kinds of rows of each label count the same in all.
    y : ndarray of shape (n, n_labels)
        0 and 1.
    weight : ndarray of shape (n,)
        How much each row counts.

    Returns
    -------
    weights : ndarray of shape (n_labels, 2) or None
        A label that all rows have, or none, has weights of 1 where they are to be balanced.
    """
    if class_weight is None:
        return None
    if class_weight == "balanced":
        having = weight @ y
        counts = np.stack([weight.sum() - having, having], axis=1)
        mixed = (counts > 0).all(axis=1, keepdims=True)
        return np.divide(weight.sum() / 2, counts, out=np.ones_like(counts), where=mixed)
    each_is_dict = isinstance(class_weight, list) and all(isinstance(weights, dict) for weights in class_weight)
    if not each_is_dict or len(class_weight) != y.shape[1]:
        raise ValueError(
            f"The 'class_weight' parameter must be 'balanced', None or a list of {y.shape[1]} dicts with keys 0 and 1, "
            f"one for each label, where y has a column for each label. Got {class_weight!r} instead."
        )
    for label, weights in enumerate(class_weight):
        _check_class_weight(weights, f"class_weight[{label}]", known={0, 1})
    return np.array([[float(weights.get(value, 1.0)) for value in (0, 1)] for weights in class_weight])


def _check_class_weight(weights: dict, name: str, known: set | None = None) -> None:
    for key, weight in weights.items():
        if known is not None and key not in known:
            raise ValueError(
                f"{name} has the key {key!r}; its keys must be 0 and 1, for rows without and with the label."
            )
        if not (isinstance(weight, Real) and 0 <= weight < np.inf):
            raise ValueError(f"{name}[{key!r}] must be a number that is not negative, got {weight!r}.")


def _has_columns(y) -> bool:
    if issparse(y):
        return True
    shape = np.asarray(y).shape
    return len(shape) == 2 and shape[1] > 1


def _check_indicators(y) -> np.ndarray:
    y = y.toarray() if issparse(y) else y
    wrong = np.flatnonzero(((y != 0) & (y != 1)).any(axis=1))
    if len(wrong):
        raise ValueError(
            f"y has a column for each label, so it must hold 0 and 1 only, but y[{wrong[0]}] = {y[wrong[0]].tolist()}."
        )
    return y.astype(np.int64)
