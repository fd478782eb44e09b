"""What the estimators share that train a network: the phases of fit, and what is kept of them."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from sktl._base import SHARED_CONSTRAINTS, EmbeddingMixin, ImageEstimator
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
    fit_linear_head,
    make_net,
    restore_network,
    train,
    trained_backbone,
)

TRAINING_CONSTRAINTS: dict[str, list] = {
    **SHARED_CONSTRAINTS,
    "strategy": [str, Strategy],
    "max_epochs": [Interval(Integral, 1, None, closed="left")],
    "learning_rate": [Interval(Real, 0, None, closed="neither"), None],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "early_stopping": ["boolean", StrOptions({"auto"})],
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
    "tol": [Interval(Real, 0, None, closed="left")],
    "random_state": ["random_state"],
    "callbacks": [list, None],
    "net_params": [dict, None],
}

EARLY_STOPPING_FROM = 10_000


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


class FineTuner(EmbeddingMixin, ImageEstimator):
    """Train a head, and as much of the backbone as the strategy says."""

    def set_params(self, **params):
        """Set parameters; a strategy given by name becomes an object where one of its own parameters is set.

        Parameters
        ----------
        **params : dict
            Among them ``strategy__<parameter>``.

        Returns
        -------
        self : estimator
            The same object.
        """
        strategy = params.get("strategy", self.strategy)
        if isinstance(strategy, str) and any(key.startswith("strategy__") for key in params):
            params["strategy"] = resolve_strategy(strategy)
        return super().set_params(**params)

    def _fit_network(
        self, rows, targets: Targets, validation, backbone: Backbone, n_outputs: int, seed: int, tasks: FitTasks
    ) -> None:
        """Run the phases of the strategy: the head alone on embeddings, then the network."""
        network = build_network(backbone, n_outputs, self.strategy_, seed)
        self.trainable_parameters_ = sum(p.numel() for p in network.parameters() if p.requires_grad)
        self.history_: list[dict[str, Any]] = []
        self._n_features_out = backbone.width
        if self.strategy_.fits_head_first:
            tasks.begin("head")
            self._fit_head(network, rows, targets, backbone)
            tasks.end(lambda: self._as_if_done(network, backbone))
        if self.strategy_.trains_backbone:
            self.net_ = self._make_net(network, resolve_device(self.device))
            self._train(rows, targets, validation, backbone, seed, tasks)
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

    def _hold_out(self, rows, targets: Targets, seed: int):
        """Split off validation rows, stratified, if early stopping wants them; say which."""
        wanted = len(targets) >= EARLY_STOPPING_FROM if self.early_stopping == "auto" else self.early_stopping
        if not wanted or not self.strategy_.trains_backbone:
            return rows, targets, None, None
        n_valid = int(np.ceil(self.validation_fraction * len(targets)))
        counts = np.bincount(targets.values)
        if counts.min() < 2 or not len(counts) <= n_valid <= len(targets) - len(counts):
            raise ValueError(
                f"early_stopping holds out {n_valid} of {len(targets)} rows, stratified over {len(counts)} classes, "
                f"and the rarest class has {counts.min()}. Give more rows, a larger validation_fraction, X_val and "
                "y_val, or early_stopping=False."
            )
        kept, held_out = (
            np.sort(part)
            for part in train_test_split(
                np.arange(len(targets)), test_size=n_valid, stratify=targets.values, random_state=seed
            )
        )
        return rows.take(kept), targets.take(kept), (rows.take(held_out), targets.take(held_out)), held_out

    def _fit_head(self, network, rows, targets: Targets, backbone) -> None:
        started = time.perf_counter()
        embeddings = self._embed(rows, backbone.view)
        loss = fit_linear_head(network.head, embeddings, targets, self.strategy_.C)
        self.history_.append({"phase": "head", "train_loss": loss, "dur": time.perf_counter() - started})

    def _make_net(self, network, device: torch.device):
        return make_net(network, self.strategy_, **self._net_settings(device))

    def _net_settings(self, device: torch.device) -> dict[str, Any]:
        return {
            "learning_rate": self.strategy_.learning_rate if self.learning_rate is None else self.learning_rate,
            "weight_decay": self.weight_decay,
            "max_epochs": self.max_epochs,
            "batch_size": self.batch_size,
            "device": device,
            "verbose": int(self.verbose),
            "callbacks": self.callbacks or (),
            "net_params": self.net_params,
        }

    def _train(self, rows, targets: Targets, validation, backbone, seed: int, tasks: FitTasks) -> None:
        preprocess = ImagePreprocessor(backbone.data_config)
        data = TrainingData(rows, targets, preprocess)
        valid = None if validation is None else TrainingData(*validation, preprocess)
        extra = []
        if valid is not None:
            extra.append(("valid_acc", ValidScore("valid_acc", _is_correct)))

        def end(network):
            return tasks.end(lambda: self._as_if_done(network, backbone))

        extra.append(("tasks", EpochTasks(lambda: tasks.begin("epoch"), end)))
        if valid is not None and self.early_stopping:
            extra.append(("early_stopping", StopEarly(self.n_iter_no_change, self.tol)))
        train(self.net_, data, valid, seed, extra)
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
        """Return the head's output of shape (n, n_outputs), float32."""
        embeddings = self._embeddings(X)
        with torch.inference_mode():
            return self.net_.module_.head(torch.from_numpy(embeddings)).numpy()

    def __copy__(self):
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)  # by reference, and so without the way through __getstate__
        return copied

    def __getstate__(self):
        state = dict(super().__getstate__())
        if "net_" in state:
            network = state.pop("net_").module_
            state["_head"] = {name: value.numpy() for name, value in network.head.state_dict().items()}
        return state

    def __setstate__(self, state):
        state = dict(state)
        head = state.pop("_head", None)
        super().__setstate__(state)
        if head is not None:
            network = restore_network(self.backbone_, self.strategy_, head)
            self.net_ = self._make_net(network, torch.device("cpu")).initialize()


def _is_correct(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (logits.argmax(dim=1) == target).float()


def _plain_entry(epoch: dict[str, Any]) -> dict[str, Any]:
    """Return one epoch of skorch's history as plain numbers, with the learning rate that it began with."""
    values = {key: value for key, value in epoch.items() if key != "batches"}
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}
    return {"phase": "network", **plain, "lr": epoch["batches"][0]["lr"]}
