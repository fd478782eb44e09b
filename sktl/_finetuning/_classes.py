"""Labels of classes, and what of them the network should say."""

import numpy as np
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_y

from sktl.training import Targets


class ClassTargets:
    """The methods of :class:`TrainingRows` that say what y is, for classes."""

    def _check_y(self, y) -> np.ndarray:
        y = _check_y(y, multi_output=False, y_numeric=False, estimator=self)
        check_classification_targets(y)
        return y

    def _learn_targets(self, y, weight, goes_on) -> Targets:
        classes, target = np.unique(y, return_inverse=True)
        if goes_on and not np.array_equal(classes, self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. Previously "
                f"got {self.classes_}, `y` has {classes}"
            )
        self.classes_ = classes
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes in y, got 1 class instead: {self.classes_[0]!r}."
            )
        class_weight = compute_class_weight(self.class_weight, classes=self.classes_, y=y, sample_weight=weight)
        return Targets(target, weight, class_weight)

    def _known_targets(self, y, weight, name) -> Targets:
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            source = "classes does" if name == "y" else "y does"
            raise ValueError(f"{name} holds labels that {source} not: {unknown[:5].tolist()}.")
        return Targets(np.searchsorted(self.classes_, y), weight)

    def _targets_of_pass(self, y, weight, first) -> Targets:
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight 'balanced' is not supported for partial_fit. In order to use 'balanced' weights, use "
                "compute_class_weight('balanced', classes=classes, y=y). Pass the resulting weights as the "
                "class_weight parameter."
            )
        known = self._known_targets(y, weight, "y")
        class_weight = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        return Targets(known.values, known.weight, class_weight)

    def _n_outputs(self) -> int:
        return len(self.classes_)

    def _strata(self, targets) -> np.ndarray:
        return targets.values
