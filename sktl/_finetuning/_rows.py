"""The rows that a network is trained on: checked, turned into targets, and held out in part."""

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, column_or_1d
from torch import nn

from sktl._base import warn_of_truncation
from sktl._finetuning._holding_out import split_rows, wants_held_out
from sktl._finetuning._labels import refuse_missing
from sktl._finetuning._network import FittedNetwork
from sktl._finetuning._telling import OF_VALIDATION, all_bad_rows_named, told_of
from sktl.backbones import Backbone
from sktl.exceptions import InputError
from sktl.inputs import Augmenter, ImagePreprocessor, refuse_unordered
from sktl.training import Targets, TrainingData, Views


class FitData(NamedTuple):
    """All rows that a fit is given, ready to be used.

    Attributes
    ----------
    rows : sequence of rows
        To learn from.
    targets : Targets
        What the network should say of them.
    validation : (rows, Targets) or None
        To measure on.
    original : (rows, Targets) or None
        The old task's, where the strategy brings them.
    """

    rows: Any
    targets: Targets
    validation: tuple[Any, Targets] | None
    original: tuple[Any, Targets] | None


class TrainingRows(FittedNetwork):
    """Check rows and what they should be; the methods that are abstract here say what y is."""

    @abstractmethod
    def _check_y(self, y) -> np.ndarray:
        """Return y as an array, or say what is wrong with it."""

    def _refuse_targets(self, y, name: str) -> None:
        """Raise an error for rows of y, called ``name``, that may not be turned into an array."""
        refuse_unordered(y, name)
        refuse_missing(y, name, "Leave out the rows for which it is not known.")

    @abstractmethod
    def _learn_targets(self, y: np.ndarray, weight: np.ndarray, goes_on: bool) -> Targets:
        """Learn what y holds from the rows that count, and turn it into what the network should say.

        If a fitted network goes on, y must hold what it held before.
        """

    @abstractmethod
    def _known_targets(self, y: np.ndarray, weight: np.ndarray, name: str) -> Targets:
        """Turn the y of further rows, called ``name`` in messages, into what the network should say."""

    @abstractmethod
    def _n_outputs(self) -> int:
        """Return the width of the head's output."""

    @abstractmethod
    def _solve_head(self, head: nn.Module, embeddings: np.ndarray, targets: Targets, seed: int) -> float:
        """Fit a new head on embeddings to convergence; return its loss."""

    def _strata(self, targets: Targets) -> np.ndarray | None:
        """Return the class of each row, where a split should keep the classes in proportion."""
        return None

    def _scale_targets(self, targets: Targets, validation, goes_on: bool):
        """Bring targets to the scale that the network learns on, found in the rows of training unless it goes on."""
        return targets, validation

    def _all_bad_rows_named(self, rows) -> AbstractContextManager:
        """Let errors about rows name all bad ones; where the network is trained, all are decoded at once anyway."""
        return nullcontext() if self.strategy_.trains_backbone else all_bad_rows_named(rows)

    def _check_training_rows(self, X, y, sample_weight, backbone, goes_on: bool):
        """Return the rows that have weight, their targets, and their positions in X."""
        if y is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        X = self._check_input(X, reset=not goes_on)
        y, sample_weight = self._check_targets(X, y, sample_weight)
        counting = np.flatnonzero(sample_weight)
        targets = self._learn_targets(y[counting], sample_weight[counting], goes_on)
        if not goes_on:
            self._learn_scaling(X, sample_weight)
        return self._open_rows(X, backbone).take(counting), targets, counting

    def _check_validation_rows(self, X, y, sample_weight, backbone):
        self.validation_indices_ = None
        if (X is None) != (y is None) or (X is None and sample_weight is not None):
            raise ValueError("X_val and y_val must be given together, and sample_weight_val with them only.")
        if X is None:
            return None
        with told_of(*OF_VALIDATION):
            X = self._check_input(X, reset=False)
            y, sample_weight = self._check_targets(X, y, sample_weight, "y_val")
            counting = np.flatnonzero(sample_weight)
            targets = self._known_targets(y[counting], sample_weight[counting], "y_val")
            return self._open_rows(X, backbone).take(counting), targets

    def _check_targets(self, X, y, sample_weight, name: str = "y") -> tuple[np.ndarray, np.ndarray]:
        self._refuse_targets(y, name)
        y = self._check_y(y)
        check_consistent_length(X, y)
        sample_weight = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
        return y, sample_weight

    def _training_data(
        self, rows, targets: Targets, backbone: Backbone, views: Views | None = None, mean_weight: float | None = None
    ) -> TrainingData:
        preprocess = None if self.input_kind_ == "texts" else ImagePreprocessor(backbone.data_config)
        data = TrainingData(rows, targets, preprocess, views, mean_weight)
        warn_of_truncation(rows, backbone.data_config)
        return data

    def _validation_data(self, rows, targets: Targets, backbone: Backbone) -> TrainingData:
        given = self.validation_indices_ is None  # and not held out of X
        with told_of(*OF_VALIDATION) if given else nullcontext():
            return self._training_data(rows, targets, backbone)

    def _views(self, backbone: Backbone, seed: int) -> Views | None:
        """Return how the training images are varied."""
        if self.augment is None:
            return None
        if self.input_kind_ == "texts":
            raise InputError("augment= needs images; texts have no variants.")
        return Views(Augmenter(self.augment, ImagePreprocessor(backbone.data_config).config), seed, self.augment_copies)

    def _check_groups(self, X, groups) -> np.ndarray | None:
        if groups is None:
            return None
        refuse_unordered(groups, "groups")
        refuse_missing(groups, "groups", "Give a row that belongs to no other a group of its own.")
        groups = column_or_1d(groups)
        check_consistent_length(X, groups)
        return groups

    def _hold_out(self, rows, targets: Targets, groups: np.ndarray | None, seed: int):
        """Split off validation rows, if early stopping wants them; say which."""
        if not self.strategy_.trains_backbone or not wants_held_out(self.early_stopping, len(targets)):
            return rows, targets, None, None
        kept, held_out = split_rows(len(targets), self.validation_fraction, self._strata(targets), groups, seed)
        return rows.take(kept), targets.take(kept), (rows.take(held_out), targets.take(held_out)), held_out
