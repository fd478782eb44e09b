"""The task that a backbone was trained on before: its head, its rows, and what is left of it after training."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.base import clone
from sklearn.metrics import accuracy_score
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import _check_y, check_consistent_length, check_is_fitted
from torch import nn

from sktl._finetuning._labels import refuse_missing
from sktl._finetuning._parameters import TrainingParameters
from sktl._finetuning._telling import OF_OLD_TASK, told_of
from sktl.backbones import Backbone, OriginalHead, ReferredHead, class_names, refer_head
from sktl.exceptions import BackboneError, StrategyError
from sktl.inputs import refuse_unordered
from sktl.training import Targets, fit_linear_head, head_outputs, pack_head, unpack_head


class OriginalTask(TrainingParameters):
    """Answer for the old task too, where the backbone brought a classifier.

    A subclass has ``_embeddings(X)`` and ``_training_data(rows, targets, backbone)``, and calls the methods below in
    ``fit``.

    Attributes
    ----------
    _original : OriginalHead, ReferredHead or None
        The old task's head, as it is after ``fit``.
    """

    _original: OriginalHead | ReferredHead | None = None

    @property
    def original_classes_(self) -> np.ndarray:
        """Labels of the old task; there is no such attribute if the backbone brought no classifier."""
        if self._original is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'original_classes_'")
        return self._original.classes

    def _prepare_original_data(self, original, backbone: Backbone) -> tuple[Backbone, Callable | None]:
        """Return the backbone with a head for the old rows, if there are any, and what draws from these."""
        if original is None:
            self._check_unmixed()
            return backbone, None
        rows, labels = original
        with told_of(*OF_OLD_TASK):
            if backbone.original_head is None:
                backbone = self._fit_original_head(rows, labels.values, backbone)
            columns = column_numbers(labels.values, backbone.original_head.classes, "The y of JointTraining")
            return backbone, self._training_data(rows, _plain_targets(columns), backbone).draw

    def _open_original_rows(self, backbone: Backbone) -> tuple[Any, Targets] | None:
        """Return the old rows that the strategy brings, and their labels as they are; None if it brings none."""
        if not self.strategy_.brings_original_data:
            return None
        X, y = self.strategy_.X, self.strategy_.y
        refuse_unordered(y, "JointTraining's y")
        refuse_missing(y, "JointTraining's y", "Leave out the rows for which it is not known.")
        with told_of(*OF_OLD_TASK):
            X = self._check_input(X, reset=False)
            y = _check_y(y, multi_output=False, y_numeric=False, estimator=self)
            check_consistent_length(X, y)
            _refuse_numbers(y)
            return self._open_rows(X, backbone), _plain_targets(y)

    def _check_unmixed(self) -> None:
        """Refuse to mix images whose old outputs are recorded one by one."""
        if self.strategy_.needs_original_head and (self.mixup or self.cutmix):
            raise StrategyError(
                f"{type(self.strategy_).__name__} records what the old head says of each image, so mixup= and cutmix= "
                "must be 0 with it."
            )

    def _fit_original_head(self, rows, y: np.ndarray, backbone: Backbone) -> Backbone:
        classes, columns = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            (only,) = classes.tolist()
            raise StrategyError(f"The y of JointTraining holds one class, {only!r}; at least 2 are needed.")
        head = nn.utils.skip_init(nn.Linear, backbone.width, len(classes))  # draws no random numbers
        fit_linear_head(head, self._embed(rows, backbone.view), _plain_targets(columns), self.strategy_.C)
        return backbone.with_original_head(OriginalHead.from_module(head, classes))

    def _keep_original_head(self, backbone: Backbone, trained: nn.Module | None) -> None:
        """Remember the old head: the one that training changed, or the one that the backbone brought."""
        head = backbone.original_head
        self._original = OriginalHead.from_module(trained, head.classes) if trained is not None else head

    def _own_backbone(self) -> Backbone:
        """Return the backbone as it is after ``fit``, with the old head as it is: what a further fit starts from."""
        return self.backbone_.with_original_head(self._original)

    def predict_proba_original(self, X) -> np.ndarray:
        """Compute the probabilities of the old task's classes.

        The old head works on the embeddings of the backbone as it is after ``fit``, so this shows what is left of the
        old task. Strategies that train the old head along answer with the trained one.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            In the same form as in ``fit``.

        Returns
        -------
        proba : ndarray of shape (n, n_original_classes), float32
            Rows sum to 1; columns in the order of ``original_classes_``.

        Raises
        ------
        BackboneError
            If the backbone brought no classifier.
        """
        return softmax(self._original_outputs(X), axis=1).astype(np.float32)

    def predict_original(self, X) -> np.ndarray:
        """Predict labels of the old task.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            In the same form as in ``fit``.

        Returns
        -------
        labels : ndarray of shape (n,)
            Of ``original_classes_``.

        Raises
        ------
        BackboneError
            If the backbone brought no classifier.
        """
        outputs = self._original_outputs(X)
        return self.original_classes_[outputs.argmax(axis=1)]

    def score_original(self, X, y, sample_weight=None) -> float:
        """Compute the accuracy on the old task: compared before and after ``fit``, it is what was forgotten.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            Images of the old task, in the same form as in ``fit``.
        y : array-like of shape (n,)
            Their labels, of ``original_classes_``; where these are names, column numbers will do.
        sample_weight : array-like of shape (n,), default=None
            How much each row counts.

        Returns
        -------
        score : float
            Share of the rows whose label is predicted.

        Raises
        ------
        BackboneError
            If the backbone brought no classifier.
        """
        outputs = self._original_outputs(X)
        y = _check_y(y, multi_output=False, y_numeric=False, estimator=self)
        wanted = column_numbers(y, self.original_classes_, "y")
        return float(accuracy_score(wanted, outputs.argmax(axis=1), sample_weight=sample_weight))

    def _original_outputs(self, X) -> np.ndarray:
        check_is_fitted(self)
        if self._original is None:
            raise BackboneError(
                f"The backbone {self.backbone_.name!r} brought no classifier of an old task, so nothing can be said of "
                "one. Published networks bring theirs, and so does a fitted FineTuneClassifier as backbone=."
            )
        if isinstance(self._original, ReferredHead):
            self._original.look_in(self.weights)
        return head_outputs(self._original.module, self._embeddings(X))

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if state.get("_original") is not None:
            state["_original"] = self._packed_original(state["_original"])
        if getattr(state.get("strategy_"), "brings_original_data", False):  # it stays a parameter, until it is replaced
            state["strategy_"] = clone(state["strategy_"]).set_params(X=None, y=None)
        return state

    def _packed_original(self, head: OriginalHead | ReferredHead) -> dict[str, Any]:
        """Return what a pickle or a file holds of the head: its name, unless it was trained, has none, or is wanted."""
        named = None if self.persist == "embed_all" else refer_head(head)
        if named is not None:
            return named.state()
        packed, usual = {"head": pack_head(head.module)}, class_names(len(head.classes))
        if head.classes.dtype == usual.dtype and np.array_equal(head.classes, usual):
            return {**packed, "n_classes": len(usual)}
        return {**packed, "classes": head.classes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        state.pop("original_classes_", None)  # up to version 0.1 an attribute of its own
        if state.get("_original") is not None:
            state["_original"] = _unpacked_original(state["_original"])
        super().__setstate__(state)

    def _as_backbone(self) -> Backbone:
        """Return the fine-tuned backbone; a classifier's own head is the original head of the next task.

        A multilabel head is dropped: an original head gives one class per row.
        """
        backbone = super()._as_backbone()
        if not hasattr(self, "classes_") or not hasattr(self, "net_") or self._is_multilabel:
            return backbone.with_original_head(None)
        return backbone.with_original_head(OriginalHead.from_module(self.net_.module_.head, self.classes_))


def _refuse_numbers(y: np.ndarray) -> None:
    kind = type_of_target(y)
    if kind not in ("binary", "multiclass"):
        raise ValueError(
            f"The y of JointTraining must hold labels of classes, for the old head is a classifier; it holds {kind} "
            "values."
        )


def _unpacked_original(packed: dict[str, Any]) -> OriginalHead | ReferredHead:
    if "head" not in packed:
        return ReferredHead.from_state(packed)
    classes = packed["classes"] if "classes" in packed else class_names(packed["n_classes"])
    return OriginalHead(unpack_head(packed["head"]).requires_grad_(False), classes)


def column_numbers(y: np.ndarray, classes: np.ndarray, name: str) -> np.ndarray:
    """Return the position of each label among the classes.

    Parameters
    ----------
    y : ndarray of shape (n,)
        Labels, or column numbers where the classes are no numbers.
    classes : ndarray of shape (n_classes,)
        In any order.
    name : str
        What y is called in messages.

    Raises
    ------
    ValueError
        If y holds a label that is none of the classes.
    """
    if y.dtype.kind in "iu" and classes.dtype.kind not in "iufb":
        classes = np.arange(len(classes))
    places: dict[Any, int] = {label: place for place, label in enumerate(classes.tolist())}
    unknown = sorted({str(label) for label in y.tolist() if label not in places})
    if unknown:
        raise ValueError(
            f"{name} holds labels that are none of the old task's {len(classes)} classes: {unknown[:5]}. See "
            "original_classes_ of the estimator, or the classes that its backbone brings."
        )
    return np.array([places[label] for label in y.tolist()], dtype=np.int64)


def _plain_targets(values: np.ndarray) -> Targets:
    return Targets(values, np.ones(len(values)))
