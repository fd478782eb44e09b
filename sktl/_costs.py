"""What a fit costs, measured while it runs, and made visible in a search."""

import math
import os
import threading
from pathlib import Path
from typing import Any

import torch
from sklearn.pipeline import Pipeline

COSTS = ("trainable_parameters", "fit_seconds", "images_per_second", "peak_memory")

_STATM = Path("/proc/self/statm")
_INTERVAL = 0.01  # seconds between two looks at the memory of the process


class PeakMemory:
    """How much more memory is in use at the peak of a block than before it.

    On a CUDA device this is what torch allocates there; torch's own peak counter is reset for it. Elsewhere it is the
    resident memory of the process, sampled a hundred times a second, which includes what other threads take meanwhile.

    Parameters
    ----------
    device : torch.device
        Where the block computes.

    Attributes
    ----------
    bytes : float
        After the block; NaN where the system does not tell.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.bytes = math.nan

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        elif _STATM.exists():
            self._before = self._peak = _resident_bytes()
            self._over = threading.Event()
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device.type == "cuda":
            self.bytes = float(torch.cuda.max_memory_allocated(self.device) - self._before)
        elif _STATM.exists():
            self._over.set()
            self._watcher.join()
            self.bytes = float(max(self._peak, _resident_bytes()) - self._before)

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL):
            self._peak = max(self._peak, _resident_bytes())


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Cost:
    """A scorer that returns one of the costs that a fitted estimator has recorded.

    Parameters
    ----------
    name : str
        Name of the attribute, without its trailing underscore.
    """

    def __init__(self, name: str):
        self.name = name

    def __call__(self, estimator: Any, X: Any = None, y: Any = None) -> float:
        """Return the attribute of the estimator, or of the last step of a pipeline; NaN if it has none."""
        while isinstance(estimator, Pipeline):
            estimator = estimator[-1]
        return float(getattr(estimator, f"{self.name}_", math.nan))

    def __repr__(self) -> str:
        return f"Cost({self.name!r})"


def search_costs() -> dict[str, Cost]:
    """Make scorers that record what each candidate of a search costs, beside its scores.

    Pass them, together with the metric that decides, as ``scoring=`` to scikit-learn's searches or ``cross_validate``,
    in any number of processes. ``cv_results_`` then has the columns ``mean_test_trainable_parameters``,
    ``mean_test_fit_seconds``, ``mean_test_images_per_second`` and ``mean_test_peak_memory``, and those of the splits.
    Costs are not scores: larger is not better, and ``rank_test_<cost>`` has no meaning. Estimators that record no
    costs, such as a pipeline that ends in a classic model, have NaN there.

    Returns
    -------
    scorers : dict of str to callable
        The scorer of each cost, by the name of the cost.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sktl import FineTuneClassifier, search_costs
    >>> X, y = load_digits(return_X_y=True)
    >>> model = FineTuneClassifier(image_shape=(8, 8), image_size=32, max_epochs=1, random_state=0)
    >>> scoring = {"accuracy": "accuracy", **search_costs()}
    >>> grid = {"strategy": ["feature_extraction", "bitfit"]}
    >>> search = GridSearchCV(model, grid, scoring=scoring, refit="accuracy", cv=2).fit(X[:80], y[:80])
    >>> search.cv_results_["mean_test_trainable_parameters"].astype(int)
    array([2570, 4486])
    """
    return {name: Cost(name) for name in COSTS}
