"""The head of a network: a layer, a small network, or a model of scikit-learn; how it is fitted."""

import time
from abc import abstractmethod

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import has_fit_parameter
from torch import nn

from sktl._finetuning._fitting import FineTuner
from sktl.exceptions import StrategyError
from sktl.training import Targets, train_head


class Heads(FineTuner):
    """Fit the head that ``head`` names on embeddings; the methods that are abstract here say what it is to learn."""

    @abstractmethod
    def _solve_linear(self, head: nn.Linear, embeddings: np.ndarray, targets: Targets) -> float:
        """Fit a linear layer to convergence; return its loss."""

    @abstractmethod
    def _check_model(self, model: BaseEstimator) -> None:
        """Refuse a model of scikit-learn that learns something else."""

    @abstractmethod
    def _model_targets(self, targets: Targets) -> np.ndarray:
        """Return what a model of scikit-learn is fitted to."""

    def _solve_head(self, head: nn.Module, embeddings: np.ndarray, targets: Targets, seed: int) -> float:
        if type(head) is nn.Linear and head.bias is not None:
            return self._solve_linear(head, embeddings, targets)
        criterion = self._criterion(**self._criterion_params(), reduction="none")
        settings = {"dropout": self.dropout, "weight_decay": self.weight_decay, "seed": seed}
        return train_head(head, embeddings, targets, criterion, **settings)

    def _fit_network(self, data, backbone, goes_on, seed, tasks, checkpoint) -> None:
        self._forget("head_")
        if not self._has_model_as_head():
            super()._fit_network(data, backbone, goes_on, seed, tasks, checkpoint)
            return
        self._forget("net_", "_net")
        started = time.perf_counter()
        tasks.begin("head")
        embeddings = self._embed(data.rows, backbone.view)
        views = self._views(backbone, seed)
        self.head_ = self._fit_model(*self._with_variants(embeddings, data, backbone, views), seed)
        self.history_ = [{"phase": "head", "dur": time.perf_counter() - started}]
        self.backbone_, self.trainable_parameters_, self._n_features_out = backbone, 0, backbone.width
        self._keep_original_head(backbone, None)
        tasks.end(lambda: {"head_": self.head_, "backbone_": backbone})

    def _has_model_as_head(self) -> bool:
        """Return whether the head is a model of scikit-learn; refuse what cannot be one."""
        if not isinstance(self.head, BaseEstimator):
            return False
        self._check_model(self.head)
        if self.strategy_.trains_backbone:
            raise StrategyError(
                f"head={type(self.head).__name__}() is fitted on the embeddings of a frozen backbone, so it goes with "
                f"strategy='feature_extraction' only, not with {type(self.strategy_).__name__}: no gradient passes it."
            )
        return True

    def _fit_model(self, embeddings: np.ndarray, targets: Targets, seed: int) -> BaseEstimator:
        model, weight, y = _seeded(clone(self.head), seed), targets.loss_weight, self._model_targets(targets)
        if np.all(weight == 1):
            return model.fit(embeddings, y)
        if has_fit_parameter(model, "sample_weight"):
            return model.fit(embeddings, y, sample_weight=weight)
        if not weight.all():
            raise ValueError(
                f"head={type(model).__name__}() takes no sample weights, so a class of weight 0 would be unknown to "
                "it: leave the rows of that class out, or change 'class_weight'."
            )
        times = np.rint(weight / weight.min()).astype(int)  # a row of weight 2 is the same as two rows
        if not np.allclose(times * weight.min(), weight):
            raise ValueError(
                f"head={type(model).__name__}() takes no sample weights, so all must be multiples of the smallest."
            )
        return model.fit(np.repeat(embeddings, times, axis=0), np.repeat(y, times, axis=0))

    def _begin_passes(self, first: bool):
        if self._has_model_as_head() or hasattr(self, "head_"):
            raise StrategyError(
                "partial_fit needs a head trained by gradient steps ('linear', 'mlp' or a module), in the call that it "
                "goes on from, too."
            )
        return super()._begin_passes(first)


def _seeded(model: BaseEstimator, seed: int) -> BaseEstimator:
    """Give a number to each ``random_state`` of a model, and of what it holds, that is left to chance."""
    random = check_random_state(seed)
    params = model.get_params()
    names = [name for name in sorted(params) if name.split("__")[-1] == "random_state" and params[name] is None]
    return model.set_params(**{name: int(random.randint(np.iinfo(np.int32).max)) for name in names})
