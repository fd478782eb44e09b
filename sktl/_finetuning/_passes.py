"""Training pass by pass: what partial_fit does."""

import copy
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils import check_random_state

from sktl._finetuning._going_on import (
    check_same_network,
    find_pretrained,
    settings_of_network,
    settings_of_passes,
)
from sktl._finetuning._rows import TrainingRows
from sktl.backbones import Backbone
from sktl.embedding import resolve_device
from sktl.exceptions import StrategyError
from sktl.strategies import Start, resolve_strategy
from sktl.training import (
    EmbeddingRows,
    Network,
    Passes,
    Targets,
    TrainingData,
    head_alone,
    merge_duplicates,
    restore_network,
    sets_rates,
)


class PassByPass(TrainingRows):
    """Train on rows that come in parts; one optimizer goes through all calls.

    The network in training and the one that predicts are two: a strategy may finish the latter (merge what it added,
    say), while the former goes on as it is.
    """

    _settings_of_network: Mapping[str, str] = MappingProxyType({})  # nothing is known of estimators of older files

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def _partial_fit(self, X, y, sample_weight) -> None:
        """Run one pass over the given rows; the caller undoes what was done if that fails."""
        started = time.perf_counter()
        first = not hasattr(self, "backbone_")
        if self.early_stopping not in ("auto", False):
            raise ValueError("early_stopping should be False with partial_fit")
        if self.learning_rate == "auto":
            raise ValueError("learning_rate should not be 'auto' with partial_fit")
        if self.ema_decay is not None:
            raise ValueError("ema_decay should be None with partial_fit")
        if any(map(sets_rates, self.callbacks or ())):
            raise ValueError("callbacks should hold no LRScheduler with partial_fit, whose learning rate is constant")
        if first:
            self._begin()
        else:
            self._follow_parameters()
        rows, targets = self._check_rows_of_pass(X, y, sample_weight, first)
        with self._all_bad_rows_named(rows):
            rows, targets, _ = merge_duplicates(rows, targets, by_pixels=self.strategy_.trains_backbone)
            targets, _ = self._scale_targets(targets, None, not first)
            if getattr(self, "_passes", None) is None:
                self._passes = self._begin_passes(first)
                self._settings_of_passes = settings_of_passes(self)
            self._forget("training_data_")  # it was of one fit
            self._check_steps(self._passes.network, self.backbone_, len(targets))
            self.history_ = [*self.history_, self._passes.run(self._data_of_pass(rows, targets))]
        self._take_over()
        self.fit_seconds_ += time.perf_counter() - started
        self.images_per_second_ = len(targets) / self.history_[-1]["dur"]

    def _begin(self) -> None:
        """Set what the first pass finds, and no later one changes."""
        self.strategy_ = resolve_strategy(self.strategy)
        self._settings_of_network = settings_of_network(self)
        self.backbone_ = self._load_backbone()
        self._keep_original_head(self.backbone_, None)
        self.validation_indices_ = None
        self.history_: list[dict[str, Any]] = []
        self.fit_seconds_ = 0.0
        self._n_features_out = self.backbone_.width

    def _follow_parameters(self) -> None:
        """Let training begin anew from the network that predicts, where it failed or parameters have changed since."""
        check_same_network(self, self._settings_of_network)
        passes = getattr(self, "_passes", None)
        if passes is not None:
            if passes.usable and settings_of_passes(self) == self._settings_of_passes:
                return
            self._passes_state = self._state_of_passes(passes)
        self._passes = None
        self.strategy_ = resolve_strategy(self.strategy)

    def _check_rows_of_pass(self, X, y, sample_weight, first: bool) -> tuple[Any, Targets]:
        X = self._check_input(X, reset=first)
        y, sample_weight = self._check_targets(X, y, sample_weight)
        counting = np.flatnonzero(sample_weight)
        targets = self._targets_of_pass(y[counting], sample_weight[counting], first)
        if first:
            self._learn_scaling(X, sample_weight)
        return self._open_rows(X, self.backbone_).take(counting), targets

    def _targets_of_pass(self, y, weight, first: bool) -> Targets:
        return self._learn_targets(y, weight, False) if first else self._known_targets(y, weight, "y")

    def _begin_passes(self, first: bool) -> Passes:
        """Set up a network in training, from the one that predicts if there is one."""
        if self.strategy_.needs_original_head:
            raise StrategyError(
                f"{type(self.strategy_).__name__} cannot be trained by partial_fit: it refers to rows of the old "
                "task or to old outputs for all rows. Use fit."
            )
        if self.strategy_.goes_back:
            raise StrategyError(
                f"{self.strategy_} cannot be trained by partial_fit: each call would take back part of what was "
                "learnt. Take alpha='auto', which takes nothing back then, or use fit."
            )
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        network = self._build_network(self.backbone_, seed, goes_on=not first)
        state = dict(self.__dict__.pop("_passes_state", None) or {"seed": seed})
        kept = {name: torch.tensor(value) for name, value in state.pop("kept", {}).items()}
        if self.strategy_.trains_backbone:
            self.strategy_.take_up(network, kept)
            self._begin_training(network, self.backbone_, goes_on=not first)
        else:
            network = head_alone(network)
        net = self._make_net(network, resolve_device(self.device))
        return Passes(net, **state)

    def _begin_training(self, network: Network, backbone: Backbone, *, goes_on: bool, **facts: Any) -> None:
        """Let the strategy take down what it refers to; ``facts`` are further attributes of its ``Start``."""
        if self.strategy_.needs_initial_weights:
            facts["initial_weights"] = dict(backbone.module.named_parameters())
        if self.strategy_.needs_pretrained_weights:
            found = find_pretrained(self, None if goes_on else backbone)
            facts["pretrained_weights"], self._settings_of_network = found
        self.strategy_.on_train_begin(network, Start(**facts))

    def _data_of_pass(self, rows, targets: Targets) -> TrainingData:
        # Without class weights: where a call brings one class alone, their mean would cancel that of the class.
        mean_weight = targets.weight.mean()
        if self.strategy_.trains_backbone:
            views = self._views(self.backbone_, self._passes.seed)
            return self._training_data(rows, targets, self.backbone_, views, mean_weight)
        if self.augment is not None:
            raise ValueError("augment should be None with partial_fit and a strategy that keeps the backbone")
        embeddings = EmbeddingRows(self._embed(rows, self.backbone_.view))
        return TrainingData(embeddings, targets, None, mean_weight=mean_weight)

    def _take_over(self) -> None:
        """Predict from now on with a copy of the network in training, as it would be if training ended here."""
        network, self._passes.usable = self._passes.network, False  # it is ahead of the one that predicts
        self.trainable_parameters_ = sum(p.numel() for p in network.parameters() if p.requires_grad)
        if not self.strategy_.trains_backbone:
            network = restore_network(self.backbone_, self.strategy_, copy.deepcopy(network.head).cpu())
        vars(self).update(self._as_if_done(network, self.backbone_))
        self._passes.usable = True

    def _state_of_passes(self, passes: Passes) -> dict[str, Any]:
        """Return the state in which passes continue from the network that predicts; after a failure, their number."""
        if not passes.usable:
            return passes.state()
        kept = self.strategy_.keep(passes.network) if self.strategy_.trains_backbone else {}
        lasting = {*kept, *(name for name, _ in self.net_.module_.named_parameters())}
        return {**passes.state(lasting), "kept": {name: value.numpy() for name, value in kept.items()}}

    def __getstate__(self):
        state = super().__getstate__()
        passes = state.pop("_passes", None)
        state.pop("_settings_of_passes", None)
        if passes is not None:
            state["strategy_"] = _without_what_it_took_down(self.strategy_)
            state["_passes_state"] = self._state_of_passes(passes) if self.warm_start else passes.state()
        return state


def _without_what_it_took_down(strategy):
    """Copy a strategy with its parameters and fitted attributes, but not with what it recorded for training."""
    copied = clone(strategy)
    vars(copied).update({name: value for name, value in vars(strategy).items() if name.endswith("_")})
    return copied
