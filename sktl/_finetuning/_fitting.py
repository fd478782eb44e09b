"""The phases of fit, and what is kept of them."""

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, check_is_fitted
from torch import nn

from sktl._base import EmbeddingMixin, warn_of_truncation
from sktl._finetuning._checkpoints import open_checkpoint
from sktl._finetuning._holding_out import split_rows, wants_held_out
from sktl._finetuning._state import PlainState
from sktl._fit_tasks import FitTasks
from sktl.backbones import Backbone
from sktl.embedding import resolve_device
from sktl.inputs import ImagePreprocessor
from sktl.strategies import Strategy, resolve_strategy
from sktl.training import (
    EpochTasks,
    StopEarly,
    Targets,
    TrainingData,
    ValidScore,
    build_network,
    make_net,
    merge_duplicates,
    start_of_training,
    train,
    trained_backbone,
)


def n_steps(strategy: Strategy, max_epochs: int) -> int:
    """Count the steps that a fit has at most: the head alone, and the epochs."""
    return strategy.fits_head_first + strategy.trains_backbone * max_epochs


@contextmanager
def as_before_on_failure(estimator: BaseEstimator) -> Iterator[None]:
    """Put an estimator's attributes back if the block fails or is interrupted: half-trained never passes for fitted."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


class FineTuner(EmbeddingMixin, PlainState, ABC):
    """Train a head, and as much of the backbone as the strategy says.

    What is predicted, and by which loss, is the business of the subclasses: they define the methods that are abstract
    here, and nothing else.

    Attributes
    ----------
    _criterion : type of module
        The loss of the training loop, with a ``reduction`` parameter.
    _valid_score : (str, callable) or None
        A score of each validation row by name, recorded per epoch.
    """

    _criterion: ClassVar[type[nn.Module]]
    _valid_score: ClassVar[tuple[str, Callable] | None] = None

    @abstractmethod
    def _check_y(self, y) -> np.ndarray:
        """Return y as an array, or say what is wrong with it."""

    @abstractmethod
    def _learn_targets(self, y: np.ndarray, weight: np.ndarray) -> Targets:
        """Learn what y holds from the rows that count, and turn it into what the network should say."""

    @abstractmethod
    def _known_targets(self, y: np.ndarray, weight: np.ndarray, name: str) -> Targets:
        """Turn the y of further rows, called ``name`` in messages, into what the network should say."""

    @abstractmethod
    def _n_outputs(self) -> int:
        """Return the width of the head's output."""

    @abstractmethod
    def _solve_head(self, head: nn.Module, embeddings: np.ndarray, targets: Targets) -> float:
        """Fit a new head on embeddings to convergence; return its loss."""

    def _strata(self, targets: Targets) -> np.ndarray | None:
        """Return the class of each row, where a split should keep the classes in proportion."""
        return None

    def _scale_targets(self, targets: Targets, validation):
        """Bring targets to the scale that the network learns on, found in the rows of training alone."""
        return targets, validation

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None):
        """Fit the head, and train what the strategy trains.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            Paths, bytes, PIL images or arrays; one row per image.
        y : array-like of shape (n,) or (n, n_targets)
            Labels of any type in classification, numbers in regression.
        sample_weight : array-like of shape (n,), default=None
            How much each row counts; rows of weight 0 are left out, and a weight of 2 is the same as having the row
            twice.
        X_val, y_val, sample_weight_val : default=None
            Rows to measure on after each epoch, and to stop early by; nothing is held out of X then. Strategies that
            keep the backbone check them and do not use them.

        Returns
        -------
        self : estimator
            Fitted.
        """
        started = time.perf_counter()
        strategy = resolve_strategy(self.strategy)
        tasks = FitTasks(self, n_steps(strategy, self.max_epochs), X, y, sample_weight)
        with as_before_on_failure(self):
            self.strategy_ = strategy
            backbone = self._load_backbone()
            rows, targets, counting = self._check_training_rows(X, y, sample_weight, backbone)
            seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
            validation = self._check_validation_rows(X_val, y_val, sample_weight_val, backbone)
            rows, targets, group = merge_duplicates(rows, targets)
            if validation is None:
                rows, targets, validation, held_out = self._hold_out(rows, targets, seed)
                self.validation_indices_ = None if held_out is None else counting[np.isin(group, held_out)]
            targets, validation = self._scale_targets(targets, validation)
            checkpoint = open_checkpoint(self, backbone, [(rows, targets), validation], seed)
            self._fit_network(rows, targets, validation, backbone, seed, tasks, checkpoint)
            self.fit_seconds_ = time.perf_counter() - started
            tasks.finish()
            if checkpoint is not None:
                checkpoint.remove()
        return self

    def _check_training_rows(self, X, y, sample_weight, backbone):
        """Return the rows that have weight, their targets, and their positions in X."""
        if y is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        X = self._check_input(X, reset=True)
        y, sample_weight = self._check_targets(X, y, sample_weight)
        counting = np.flatnonzero(sample_weight)
        targets = self._learn_targets(y[counting], sample_weight[counting])
        self._learn_scaling(X, sample_weight)
        return self._open_rows(X, backbone).take(counting), targets, counting

    def _check_validation_rows(self, X, y, sample_weight, backbone):
        self.validation_indices_ = None
        if (X is None) != (y is None):
            raise ValueError("X_val and y_val must be given together.")
        if X is None:
            return None
        X = self._check_input(X, reset=False)
        y, sample_weight = self._check_targets(X, y, sample_weight)
        counting = np.flatnonzero(sample_weight)
        targets = self._known_targets(y[counting], sample_weight[counting], "y_val")
        return self._open_rows(X, backbone).take(counting), targets

    def _check_targets(self, X, y, sample_weight) -> tuple[np.ndarray, np.ndarray]:
        y = self._check_y(y)
        check_consistent_length(X, y)
        sample_weight = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
        if not sample_weight.any():
            raise ValueError("The sample weights must not all be zero: no row would count.")
        return y, sample_weight

    def _hold_out(self, rows, targets: Targets, seed: int):
        """Split off validation rows, if early stopping wants them; say which."""
        if not self.strategy_.trains_backbone or not wants_held_out(self.early_stopping, len(targets)):
            return rows, targets, None, None
        kept, held_out = split_rows(len(targets), self.validation_fraction, self._strata(targets), seed)
        return rows.take(kept), targets.take(kept), (rows.take(held_out), targets.take(held_out)), held_out

    def _fit_network(
        self, rows, targets: Targets, validation, backbone: Backbone, seed: int, tasks: FitTasks, checkpoint
    ) -> None:
        """Run the phases of the strategy: the head alone on embeddings, then the network."""
        network = build_network(backbone, self._n_outputs(), self.strategy_, seed)
        self.history_: list[dict[str, Any]] = []
        self._n_features_out = backbone.width
        embeddings = None
        if self.strategy_.fits_head_first:
            tasks.begin("head")
            embeddings = self._fit_head(network, rows, targets, backbone)
        if self.strategy_.trains_backbone:
            self.strategy_.on_train_begin(network, start_of_training(self.strategy_, backbone, embeddings))
        if self.strategy_.fits_head_first:
            tasks.end(lambda: self._as_if_done(network, backbone))
        if self.strategy_.trains_backbone:
            self.net_ = self._make_net(network, resolve_device(self.device))
            self._train(rows, targets, validation, backbone, seed, tasks, checkpoint)
        self.trainable_parameters_ = sum(p.numel() for p in network.parameters() if p.requires_grad)
        if self.strategy_.trains_backbone:
            self.strategy_.finish(network)
            self.backbone_ = trained_backbone(backbone, network)
        else:
            self.net_ = self._make_net(network, torch.device("cpu")).initialize()
            self.backbone_ = backbone

    def _as_if_done(self, network, backbone: Backbone) -> dict[str, Any]:
        """Return the attributes of an estimator whose fit ends here, on a copy of its network."""
        if self.strategy_.trains_backbone:
            network = copy.deepcopy(network).cpu().eval()
            copy.deepcopy(self.strategy_).finish(network)
            backbone = trained_backbone(backbone, network)
        settings = {**self._net_settings(torch.device("cpu")), "callbacks": ()}  # those in training know one net only
        return {"net_": make_net(network, self.strategy_, **settings).initialize(), "backbone_": backbone}

    def _fit_head(self, network, rows, targets: Targets, backbone) -> np.ndarray:
        """Fit the head on the backbone's embeddings of the rows; return these."""
        started = time.perf_counter()
        embeddings = self._embed(rows, backbone.view)
        loss = self._solve_head(network.head, embeddings, targets)
        self.history_.append({"phase": "head", "train_loss": loss, "dur": time.perf_counter() - started})
        return embeddings

    def _make_net(self, network, device: torch.device):
        return make_net(network, self.strategy_, **self._net_settings(device))

    def _net_settings(self, device: torch.device) -> dict[str, Any]:
        return {
            "criterion": self._criterion,
            "learning_rate": self.strategy_.learning_rate if self.learning_rate is None else self.learning_rate,
            "weight_decay": self.weight_decay,
            "max_epochs": self.max_epochs,
            "batch_size": self.batch_size,
            "n_parts": self.gradient_accumulation,
            "device": device,
            "verbose": int(self.verbose),
            "callbacks": self.callbacks or (),
            "net_params": self.net_params,
        }

    def _train(self, rows, targets: Targets, validation, backbone, seed: int, tasks: FitTasks, checkpoint) -> None:
        preprocess = None if self.input_kind_ == "texts" else ImagePreprocessor(backbone.data_config)
        data = TrainingData(rows, targets, preprocess)
        warn_of_truncation(rows, backbone.data_config)
        valid = None if validation is None else TrainingData(*validation, preprocess)
        extra = []
        if valid is not None and self._valid_score is not None:
            extra.append((self._valid_score[0], ValidScore(*self._valid_score)))

        def end(network):
            return tasks.end(lambda: self._as_if_done(network, backbone))

        extra.append(("tasks", EpochTasks(lambda: tasks.begin("epoch"), end)))
        if valid is not None and self.early_stopping:
            extra.append(("early_stopping", StopEarly(self.n_iter_no_change, self.tol)))
        train(self.net_, data, valid, seed, extra, checkpoint)
        self.history_ += [_plain_entry(epoch) for epoch in self.net_.history]

    def transform(self, X) -> np.ndarray:
        """Compute the embeddings that the head works on.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            In the same form as in ``fit``.

        Returns
        -------
        embeddings : ndarray of shape (n, width), float32
            From the fine-tuned backbone, where the strategy trains it.
        """
        check_is_fitted(self)
        return self._embeddings(X)

    def _embeddings(self, X) -> np.ndarray:
        """Compute embeddings; those of a trained backbone are not stored, since no other fit can use them."""
        X = self._check_input(X, reset=False)
        rows = self._open_rows(X, self.backbone_)
        return self._embed(rows, self.backbone_.view, stored=not self.strategy_.trains_backbone)

    def _outputs(self, X) -> np.ndarray:
        """Return the head's output of shape (n, n_outputs), float64: else it would hang on how many rows are given."""
        embeddings = torch.from_numpy(self._embeddings(X))
        head = copy.deepcopy(self.net_.module_.head).double()
        with torch.inference_mode():
            return head(embeddings.double()).numpy()


def _plain_entry(epoch: dict[str, Any]) -> dict[str, Any]:
    """Return one epoch of skorch's history as plain numbers, with the learning rate that it began with."""
    values = {key: value for key, value in epoch.items() if key != "batches"}
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}
    return {"phase": "network", **plain, "lr": epoch["batches"][0]["lr"]}
