"""The ways that `sktl compare` tries: two scikit-learn pipelines, and the strategies that were named."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from sktl.finetune import FineTuneClassifier
from sktl.inputs import ImagePreprocessor, open_rows
from sktl.strategies import resolve_strategy
from sktl.training import map_rows
from sktl.transformer import PretrainedFeatureTransformer


class SmallPixels(TransformerMixin, BaseEstimator):
    """Turn images into rows of pixels: shrunk to a square, flattened, one channel if all that ``fit`` saw was grey.

    Parameters
    ----------
    size : int, default=32
        Side of the square.
    """

    def __init__(self, size=32):
        self.size = size

    def fit(self, X, y=None):
        """Learn whether colours matter."""
        self.fit_transform(X)
        return self

    def fit_transform(self, X, y=None):
        """Do the same as ``fit`` and ``transform``, and read the images once."""
        pixels = self._read(X)
        self.is_grey_ = bool((pixels == pixels[..., :1]).all())
        return self._flatten(pixels)

    def transform(self, X):
        """Return an array of shape (n, size * size * channels)."""
        check_is_fitted(self)
        return self._flatten(self._read(X))

    def _read(self, X) -> np.ndarray:
        shrink = ImagePreprocessor(
            {
                "input_size": (3, self.size, self.size),
                "crop_mode": "squash",
                "crop_pct": 1.0,
                "interpolation": "bilinear",
            }
        )
        rows = open_rows(X)
        return np.stack(map_rows(lambda index: shrink(rows[index].pixels()), rows, range(len(rows))))

    def _flatten(self, pixels: np.ndarray) -> np.ndarray:
        pixels = pixels[..., :1] if self.is_grey_ else pixels
        return pixels.reshape(len(pixels), -1).astype(np.float32)


@dataclass
class Candidate:
    """One way of transfer.

    Attributes
    ----------
    name : str
        As the table shows it.
    model : estimator
        Not fitted.
    param_grid : dict
        What its grid search tries.
    effort : float
        Passes over the training images that a fit takes, for the progress bar.
    """

    name: str
    model: Any
    param_grid: dict[str, list]
    effort: float

    @property
    def is_long(self) -> bool:
        """Whether a fit goes through the images several times."""
        return self.effort >= 1


def make_candidates(
    strategies, network: dict[str, Any], training: dict[str, Any], *, pixels_size: int
) -> list[Candidate]:
    """Return all ways to try, the cheaper ones first.

    Parameters
    ----------
    strategies : sequence of str
        Names.
    network : dict
        Parameters that transformer and classifier share: the backbone and where it runs.
    training : dict
        Parameters of the classifier alone: epochs, learning rate, seed.
    pixels_size : int
        Side of the images for the baseline on raw pixels.

    Returns
    -------
    candidates : list of Candidate
        With names as the table shows them.
    """
    pixels = make_pipeline(SmallPixels(pixels_size), StandardScaler(), LogisticRegression(max_iter=2000))
    embeddings = make_pipeline(
        PretrainedFeatureTransformer(**network), StandardScaler(), LogisticRegression(max_iter=2000)
    )
    return [
        Candidate("raw pixels + LogisticRegression", pixels, {}, 0.1),
        Candidate("embeddings + LogisticRegression", embeddings, {}, 0.1),
        *(
            Candidate(name, FineTuneClassifier(**network, **training), {"strategy": [name]}, _effort(name, training))
            for name in strategies
        ),
    ]


def _effort(strategy: str, training: dict[str, Any]) -> float:
    return float(training["max_epochs"]) if resolve_strategy(strategy).trains_backbone else 0.1


def count_parameters(model) -> int:
    """Count the numbers that a fitted candidate has learnt.

    Parameters
    ----------
    model : estimator
        A fitted classifier, or a pipeline that ends in a linear one.

    Returns
    -------
    n_parameters : int
        Weights and intercepts of the classifier.
    """
    last = model[-1] if hasattr(model, "steps") else model
    if hasattr(last, "trainable_parameters_"):
        return int(last.trainable_parameters_)
    return int(last.coef_.size + last.intercept_.size)
