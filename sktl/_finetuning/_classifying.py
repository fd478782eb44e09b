"""What a classifier's head says: one class of several for each row, or of several labels each by itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, is_classifier
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sktl._finetuning._classes import ClassTargets
from sktl._finetuning._heads import Heads
from sktl._finetuning._labels import refuse_several
from sktl.training import CrossEntropyLoss, MultilabelLoss, Targets, fit_linear_head, fit_multilabel_head


def head_offers(method: str) -> Callable[[Heads], bool]:
    """Return a check for ``available_if``: whether the estimator's head has a method.

    Parameters
    ----------
    method : str
        Such as ``"predict_proba"``, which not all models of scikit-learn have.
    """

    def check(estimator: Heads) -> bool:
        model = getattr(estimator, "head_", estimator.head)
        return not isinstance(model, BaseEstimator) or hasattr(model, method)

    return check


class ClassifierHeads(ClassTargets, Heads):
    """Fit a head for classes or labels, and predict with it."""

    @property
    def _criterion(self) -> type[nn.Module]:
        return MultilabelLoss if self._is_multilabel else CrossEntropyLoss

    def _refuse_targets(self, y, name) -> None:
        super()._refuse_targets(y, name)
        refuse_several(y, name)

    def _criterion_params(self) -> dict[str, Any]:
        if not self._is_multilabel or self._label_weight is None:
            return {}
        return {"label_weight": torch.as_tensor(self._label_weight, dtype=torch.float32)}

    def _net_settings(self, device: torch.device) -> dict[str, Any]:
        settings = super()._net_settings(device)
        if self.label_smoothing:
            settings["criterion_params"] = {**settings["criterion_params"], "label_smoothing": self.label_smoothing}
        return settings

    def _solve_linear(self, head, embeddings, targets) -> float:
        if self._is_multilabel:
            return fit_multilabel_head(head, embeddings, targets, self.strategy_.C, self._label_weight)
        return fit_linear_head(head, embeddings, targets, self.strategy_.C)

    def _check_model(self, model: BaseEstimator) -> None:
        name = type(model).__name__
        if not is_classifier(model):
            raise ValueError(f"The 'head' parameter must be a classifier, got {name} instead.")
        if self._is_multilabel and self._label_weight is not None:
            raise ValueError(
                f"The 'class_weight' parameter must be None with labels in columns and head={name}(): it weighs rows "
                "otherwise for each label, and a model takes one weight per row. Give it to the model, if that has it."
            )

    def _model_targets(self, targets: Targets) -> np.ndarray:
        return targets.values.astype(np.int64)

    def _fit_model(self, embeddings: np.ndarray, targets: Targets, seed: int) -> BaseEstimator:
        try:
            return super()._fit_model(embeddings, targets, seed)
        except ValueError as error:
            if self._is_multilabel:  # what a model takes it says in no reliable way before
                name = f"{type(self.head).__name__}()"
                error.add_note(f"y has a column per label. Where {name} takes one: head=MultiOutputClassifier({name}).")
            raise

    @available_if(head_offers("decision_function"))
    def decision_function(self, X) -> np.ndarray:
        """Compute the head's output.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            In the same form as in ``fit``.

        Returns
        -------
        scores : ndarray of shape (n,) or (n, n_classes), float32
            One column per class; with two classes, how much the second is favoured. For labels in columns, one column
            each: above 0, it is predicted.
        """
        check_is_fitted(self)
        if hasattr(self, "head_"):
            return self.head_.decision_function(self._embeddings(X)).astype(np.float32)
        logits = self._outputs(X).astype(np.float32)
        if self._is_multilabel or len(self.classes_) > 2:
            return logits
        return logits[:, 1] - logits[:, 0]

    @available_if(head_offers("predict_proba"))
    def predict_proba(self, X) -> np.ndarray:
        """Compute class probabilities.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            In the same form as in ``fit``.

        Returns
        -------
        proba : ndarray of shape (n, n_classes), float32
            Columns in the order of ``classes_``. Rows sum to 1, but for labels in columns, of which each has its own
            probability.
        """
        check_is_fitted(self)
        if hasattr(self, "head_"):
            proba = self.head_.predict_proba(self._embeddings(X))
            return (_of_labels(proba, self.head_) if self._is_multilabel else proba).astype(np.float32)
        outputs = self._outputs(X)
        return _probability(outputs) if self._is_multilabel else softmax(outputs, axis=1).astype(np.float32)

    @available_if(head_offers("predict_proba"))
    def predict_log_proba(self, X) -> np.ndarray:
        """Compute the logarithm of what ``predict_proba`` gives.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            In the same form as in ``fit``.

        Returns
        -------
        log_proba : ndarray of shape (n, n_classes), float32
            Minus infinity where the probability is 0.
        """
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def predict(self, X) -> np.ndarray:
        """Predict labels.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            In the same form as in ``fit``.

        Returns
        -------
        labels : ndarray of shape (n,) or (n, n_classes)
            Of the type of ``classes_``; for labels in columns, 1 where the row has the label and 0 where not.
        """
        check_is_fitted(self)
        if self._is_multilabel:
            return self._predicted_labels(X)
        if hasattr(self, "head_"):
            return self.classes_[self.head_.predict(self._embeddings(X))]
        return self.classes_[self._outputs(X).argmax(axis=1)]

    def _predicted_labels(self, X) -> np.ndarray:
        if not hasattr(self, "head_"):
            return (self._outputs(X) > 0).astype(np.int64)
        predicted = self.head_.predict(self._embeddings(X))
        return (predicted.toarray() if issparse(predicted) else predicted).astype(np.int64)


def _of_labels(proba: np.ndarray | list[np.ndarray], model: BaseEstimator) -> np.ndarray:
    """Return the probability of having each label; some models return a table of two columns for each label instead."""
    if not isinstance(proba, list):
        return proba
    having = [
        np.take(table, np.flatnonzero(np.asarray(classes) == 1), axis=1).sum(axis=1)  # a column may be missing
        for table, classes in zip(proba, model.classes_, strict=True)
    ]
    return np.stack(having, axis=1)


def _probability(logits: np.ndarray) -> np.ndarray:
    """Return the logistic function; what float32 would round to 0 or 1 becomes the number next to these."""
    proba = expit(logits).astype(np.float32)
    return np.clip(proba, np.finfo(np.float32).tiny, np.nextafter(np.float32(1), np.float32(0)))
