"""The head of a classifier: a layer, a small network, or a model of scikit-learn; how it is fitted, what it says."""

import time
from collections.abc import Callable

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, has_fit_parameter
from torch import nn

from sktl._finetuning._fitting import FineTuner
from sktl.exceptions import StrategyError
from sktl.training import Targets, fit_linear_head, make_head, train_head


def head_offers(method: str) -> Callable[[FineTuner], bool]:
    """Return a check for ``available_if``: whether the estimator's head has a method.

    Parameters
    ----------
    method : str
        Such as ``"predict_proba"``, which not all models of scikit-learn have.
    """

    def check(estimator: FineTuner) -> bool:
        model = getattr(estimator, "head_", estimator.head)
        return not isinstance(model, BaseEstimator) or hasattr(model, method)

    return check


class ClassifierHeads(FineTuner):
    """Make the head that ``head`` names, fit it on embeddings, and predict with it."""

    def _new_head(self, width: int, seed: int) -> nn.Module:
        return make_head(self.head, width, self._n_outputs(), seed)

    def _solve_head(self, head: nn.Module, embeddings: np.ndarray, targets: Targets, seed: int) -> float:
        if type(head) is nn.Linear and head.bias is not None:
            return fit_linear_head(head, embeddings, targets, self.strategy_.C)
        settings = {"dropout": self.dropout, "weight_decay": self.weight_decay, "seed": seed}
        return train_head(head, embeddings, targets, **settings)

    def _fit_network(self, rows, targets, validation, backbone, goes_on, seed, tasks, checkpoint) -> None:
        self.__dict__.pop("head_", None)
        if not self._has_model_as_head():
            super()._fit_network(rows, targets, validation, backbone, goes_on, seed, tasks, checkpoint)
            return
        for attribute in ("net_", "_net"):
            self.__dict__.pop(attribute, None)
        started = time.perf_counter()
        tasks.begin("head")
        embeddings = self._embed(rows, backbone.view)
        views = self._views(backbone, seed)
        self.head_ = self._fit_model(*self._with_variants(embeddings, rows, targets, backbone, views))
        self.history_ = [{"phase": "head", "dur": time.perf_counter() - started}]
        self.backbone_, self.trainable_parameters_, self._n_features_out = backbone, 0, backbone.width
        self._keep_original_head(backbone, None)
        tasks.end(lambda: {"head_": self.head_, "backbone_": backbone})

    def _has_model_as_head(self) -> bool:
        """Return whether the head is a model of scikit-learn; refuse what cannot be one."""
        if not isinstance(self.head, BaseEstimator):
            return False
        name = type(self.head).__name__
        if not is_classifier(self.head):
            raise ValueError(f"The 'head' parameter must be a classifier, got {name} instead.")
        if self.strategy_.trains_backbone:
            raise StrategyError(
                f"head={name}() is fitted on the embeddings of a frozen backbone, so it goes with "
                f"strategy='feature_extraction' only, not with {type(self.strategy_).__name__}: no gradient passes it."
            )
        return True

    def _fit_model(self, embeddings: np.ndarray, targets: Targets) -> BaseEstimator:
        model, weight = clone(self.head), targets.loss_weight
        if np.all(weight == 1):
            return model.fit(embeddings, targets.values)
        if has_fit_parameter(model, "sample_weight"):
            return model.fit(embeddings, targets.values, sample_weight=weight)
        times = np.rint(weight / weight.min()).astype(int)  # a row of weight 2 is the same as two rows
        if not np.allclose(times * weight.min(), weight):
            raise ValueError(
                f"head={type(model).__name__}() takes no sample weights, so all must be multiples of the smallest."
            )
        return model.fit(np.repeat(embeddings, times, axis=0), np.repeat(targets.values, times))

    def _begin_passes(self, first: bool):
        if self._has_model_as_head():
            raise StrategyError("partial_fit needs a head trained by gradient steps: 'linear', 'mlp' or a module.")
        return super()._begin_passes(first)

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
            One column per class; with two classes, how much the second is favoured.
        """
        check_is_fitted(self)
        if hasattr(self, "head_"):
            return self.head_.decision_function(self._embeddings(X)).astype(np.float32)
        logits = self._outputs(X).astype(np.float32)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

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
            Rows sum to 1; columns in the order of ``classes_``.
        """
        check_is_fitted(self)
        if hasattr(self, "head_"):
            return self.head_.predict_proba(self._embeddings(X)).astype(np.float32)
        return softmax(self._outputs(X), axis=1).astype(np.float32)

    def predict(self, X) -> np.ndarray:
        """Predict labels.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            In the same form as in ``fit``.

        Returns
        -------
        labels : ndarray of shape (n,)
            Of the type of ``classes_``.
        """
        check_is_fitted(self)
        if hasattr(self, "head_"):
            return self.classes_[self.head_.predict(self._embeddings(X))]
        return self.classes_[self._outputs(X).argmax(axis=1)]
