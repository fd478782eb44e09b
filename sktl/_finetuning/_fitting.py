"""The phases of fit."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils import check_random_state

from sktl._costs import PeakMemory
from sktl._finetuning._checkpoints import open_checkpoint
from sktl._finetuning._company import warned_of_company
from sktl._finetuning._going_on import check_same_network, settings_of_network
from sktl._finetuning._holding_out import groups_of_merged
from sktl._finetuning._passes import PassByPass
from sktl._finetuning._rows import FitData
from sktl._fit_tasks import FitTasks
from sktl._undo import as_before_on_failure
from sktl.backbones import Backbone
from sktl.embedding import resolve_device
from sktl.inputs import ImagePreprocessor
from sktl.strategies import Strategy, resolve_strategy
from sktl.training import (
    EpochTasks,
    StopEarly,
    Targets,
    ValidScore,
    VariantRows,
    autocast_dtype,
    current_peers,
    describe_rows,
    find_learning_rate,
    make_net,
    merge_duplicates,
    plain_history,
    train,
    trained_backbone,
)

DEFAULT_COPIES = 4  # variants of each image that a head is fitted on


def n_steps(strategy: Strategy, max_epochs: int) -> int:
    """Count the steps that a fit has at most: the head alone, and the epochs."""
    return strategy.fits_head_first + strategy.trains_backbone * max_epochs


class FineTuner(PassByPass):
    """Train a head, and as much of the backbone as the strategy says.

    What is predicted, and by which loss, is the business of the subclasses: they define the methods that are abstract
    in :class:`TrainingRows`, and the two attributes.

    Attributes
    ----------
    _criterion : type of module
        The loss of the training loop, with a ``reduction`` parameter.
    _valid_score : (str, callable) or None
        A score of each validation row by name, recorded per epoch.
    """

    _valid_score: ClassVar[tuple[str, Callable] | None] = None

    @_fit_context(prefer_skip_nested_validation=True)
    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def fit(self, X, y, sample_weight=None, *, groups=None, X_val=None, y_val=None, sample_weight_val=None):
        """Fit the head, and train what the strategy trains.

        Parameters
        ----------
        X : sequence of images, array of shape (n, height, width, 3), or array-like of shape (n, n_features)
            Paths, bytes, PIL images or arrays; one row per image.
        y : array-like of shape (n,), (n, n_labels) or (n, n_targets)
            Labels of any type or, where several may hold, columns of 0 and 1 in classification; numbers in regression.
        sample_weight : array-like of shape (n,), default=None
            How much each row counts; rows of weight 0 are left out, and a weight of 2 is the same as having the row
            twice.
        groups : array-like of shape (n,), default=None
            Labels of what belongs together, such as the pictures of one patient: where early stopping holds out rows, a
            group is held out as a whole or not at all.
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
        with as_before_on_failure(self), PeakMemory(resolve_device(self.device)) as memory:
            self.strategy_ = strategy
            goes_on = self.warm_start and hasattr(self, "net_")
            backbone = self._backbone_to_start_from(goes_on)
            rows, targets, counting = self._check_training_rows(X, y, sample_weight, backbone, goes_on)
            seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
            seed = current_peers().agree(seed)
            validation = self._check_validation_rows(X_val, y_val, sample_weight_val, backbone)
            groups = self._check_groups(X, groups)
            with self._all_bad_rows_named(rows):
                rows, targets, merged = merge_duplicates(rows, targets, by_pixels=strategy.trains_backbone)
                self.training_data_ = describe_rows(rows, targets)
                if validation is None:
                    groups = None if groups is None else groups_of_merged(groups[counting], merged)
                    rows, targets, validation, held_out = self._hold_out(rows, targets, groups, seed)
                    self.validation_indices_ = None if held_out is None else counting[np.isin(merged, held_out)]
                targets, validation = self._scale_targets(targets, validation, goes_on)
                data = FitData(rows, targets, validation, self._open_original_rows(backbone))
                self._forget("_passes", "_passes_state", "_settings_of_passes", "learning_rate_", "lr_curve_")
                checkpoint = open_checkpoint(self, backbone, data, seed)
                self._fit_network(data, backbone, goes_on, seed, tasks, checkpoint)
            self.fit_seconds_ = time.perf_counter() - started
            n_passes = len(self.history_) - (0 if checkpoint is None else checkpoint.n_epochs_found)
            self.images_per_second_ = len(data.targets) * n_passes / self.fit_seconds_
            tasks.finish()
            if checkpoint is not None:
                checkpoint.remove()
        self.peak_memory_ = memory.bytes
        return self

    def _backbone_to_start_from(self, goes_on: bool) -> Backbone:
        """Return the fitted backbone where training goes on from it, else load the one that the parameters name."""
        if goes_on:
            check_same_network(self, self._settings_of_network)
            return self._own_backbone()
        self._settings_of_network = settings_of_network(self)
        return self._load_backbone()

    def _fit_network(
        self, data: FitData, backbone: Backbone, goes_on: bool, seed: int, tasks: FitTasks, checkpoint
    ) -> None:
        """Run the phases of the strategy: the head alone on embeddings, unless it goes on, then the network."""
        backbone, draw_original = self._prepare_original_data(data.original, backbone)
        network = self._build_network(backbone, seed, goes_on=goes_on)
        views = self._views(backbone, seed)
        if self.strategy_.trains_backbone or views is None:  # a head alone sees each row's variants at once
            self._check_steps(network, backbone, len(data.targets), in_loop=self.strategy_.trains_backbone)
        self.history_: list[dict[str, Any]] = []
        self._n_features_out = backbone.width
        embeddings = None
        if self.strategy_.fits_head_first:
            tasks.begin("head")
            solve = not goes_on or not self.strategy_.trains_backbone
            embeddings = self._fit_head(network, data, backbone, views, seed, solve=solve)
        if self.strategy_.trains_backbone:
            n_classes = self._n_outputs() if data.targets.are_classes else 1
            rows_per_class = None if goes_on else len(data.targets) / n_classes
            facts = {"embeddings": embeddings, "draw_original": draw_original, "rows_per_class": rows_per_class}
            self._begin_training(network, backbone, goes_on=goes_on, **facts)
        stops = self.strategy_.fits_head_first and tasks.end(lambda: self._as_if_done(network, backbone))
        if self.strategy_.trains_backbone and not stops:
            self._train(network, data, backbone, views, seed, tasks, checkpoint)
        else:
            self.net_ = self._make_net(network, torch.device("cpu")).initialize()
        self.trainable_parameters_ = sum(p.numel() for p in network.parameters() if p.requires_grad)
        self.backbone_ = backbone
        if self.strategy_.trains_backbone:
            self.strategy_.finish(network)
            self.backbone_ = trained_backbone(backbone, network)
        self._keep_original_head(backbone, network.original_head)

    def _fit_head(self, network, data: FitData, backbone, views, seed: int, *, solve: bool) -> np.ndarray | None:
        """Fit the head, if it is new, on the backbone's embeddings of the rows; return these, if they are of use."""
        started = time.perf_counter()
        if not solve and not self.strategy_.needs_original_head:
            return None
        embeddings = self._embed(data.rows, backbone.view)
        if not solve:
            return embeddings
        used = self._with_variants(embeddings, data, backbone, views)
        loss = self._solve_head(network.head, *used, seed)
        self.history_.append({"phase": "head", "train_loss": loss, "dur": time.perf_counter() - started})
        return embeddings

    def _with_variants(self, embeddings, data: FitData, backbone, views) -> tuple[np.ndarray, Targets]:
        """Add the embeddings of variants of the images, where the head is all that is trained."""
        if views is None or self.strategy_.trains_backbone:
            return embeddings, data.targets
        views = replace(views, n_kept=views.n_kept or DEFAULT_COPIES)
        variants = VariantRows(data.rows, ImagePreprocessor(backbone.data_config), views)
        of_variants = self._embed(variants, backbone.view, stored=views.augment.key is not None)
        n_times = 1 + views.n_kept
        repeated = data.targets.take(np.tile(np.arange(len(data.targets)), n_times))
        return np.concatenate([embeddings, of_variants]), replace(repeated, weight=repeated.weight / n_times)

    def _find_learning_rate(self, network, data, seed: int, precision: torch.dtype | None) -> None:
        """Find the learning rate by a test, if that is wanted, in the precision of training."""
        if self.learning_rate != "auto":
            return
        settings = {**self._net_settings(resolve_device(self.device)), "learning_rate": 1.0, "ema_decay": None}
        net = make_net(copy.deepcopy(network), copy.deepcopy(self.strategy_), **settings)
        net.autocast = precision
        self.learning_rate_, self.lr_curve_ = find_learning_rate(net, data, seed)

    def _train(self, network, data: FitData, backbone, views, seed, tasks: FitTasks, checkpoint) -> None:
        learnt = self._training_data(data.rows, data.targets, backbone, views)
        device = resolve_device(self.device)
        precision = autocast_dtype(self.amp, network, learnt.first_images(), device, self.dtype)
        self._find_learning_rate(network, learnt, seed, precision)
        self.net_ = self._make_net(network, device)
        self.net_.autocast = precision
        valid = None if data.validation is None else self._validation_data(*data.validation, backbone)
        extra = []
        if valid is not None and self._valid_score is not None:
            extra.append((self._valid_score[0], ValidScore(*self._valid_score)))

        def end(network):
            return tasks.end(lambda: self._as_if_done(network, backbone))

        extra.append(("tasks", EpochTasks(lambda: tasks.begin("epoch"), end)))
        if valid is not None and self.early_stopping:
            extra.append(("early_stopping", StopEarly(self.n_iter_no_change, self.tol)))
        with warned_of_company(device):
            train(self.net_, learnt, valid, seed, extra, checkpoint)
        for epoch in plain_history(self.net_):
            first_batch = epoch.pop("batches")[0]
            self.history_.append({"phase": "network", **epoch, "lr": first_batch["lr"]})
