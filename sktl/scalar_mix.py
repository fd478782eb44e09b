"""The learned mix of a network's layers."""

from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils._param_validation import Interval
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data
from torch.nn import functional


class ScalarMix(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Learn how much each layer of a network counts, and add the layers up accordingly.

    Takes the embeddings of several layers side by side, all of the same width, as
    ``PretrainedFeatureTransformer(layer=[0, 1, 2])`` gives them for a text encoder, and returns their weighted sum.
    There is one weight per layer; they are positive and sum to 1. They are learnt together with a linear model of the
    targets, which is then discarded. The network itself is not trained, so its embeddings are computed only once.

    Parameters
    ----------
    n_layers : int, default=1
        How many layers stand side by side.
    C : float, default=1.0
        Inverse strength of the L2 penalty of the linear model.
    penalty : float, default=0.001
        Strength of the pull of the weights towards the plain mean of the layers.
    max_iter : int, default=200
        Maximum number of steps of the solver (L-BFGS).

    Attributes
    ----------
    weights_ : ndarray of shape (n_layers,)
        How much each layer counts.
    scales_ : ndarray of shape (n_layers,)
        Standard deviation of each layer's values in ``fit``, by which they are divided.
    n_iter_ : int
        Steps of the solver.
    n_features_in_ : int
        Number of columns of X.
    feature_names_in_ : ndarray of str
        Names of the columns of X, where it was a frame.

    See Also
    --------
    PretrainedFeatureTransformer : Gives the embeddings of several layers.

    Notes
    -----
    The factor by which the paper scales the whole mix is left out: the model that takes the mix learns it anyway.

    References
    ----------
    Peters, M. E., Neumann, M., Iyyer, M., et al.: Deep Contextualized Word Representations. NAACL 2018. (ELMo)

    Examples
    --------
    >>> import numpy as np
    >>> from sktl import ScalarMix
    >>> rng = np.random.default_rng(0)
    >>> noise, signal = rng.normal(size=(2, 100, 3))
    >>> mix = ScalarMix(n_layers=2).fit(np.hstack([noise, signal]), signal[:, 0] > 0)
    >>> bool(mix.weights_[1] > 0.9)
    True
    >>> mix.transform(np.hstack([noise, signal])).shape
    (100, 3)
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_layers": [Interval(Integral, 1, None, closed="left")],
        "C": [Interval(Real, 0, None, closed="neither")],
        "penalty": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, n_layers=1, *, C=1.0, penalty=0.001, max_iter=200):
        self.n_layers = n_layers
        self.C = C
        self.penalty = penalty
        self.max_iter = max_iter

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y):
        """Learn the weights.

        Parameters
        ----------
        X : array-like of shape (n, n_layers * width)
            Embeddings of the layers, side by side.
        y : array-like of shape (n,)
            Class labels of any type, or, as floats that are not all whole, numbers to be predicted.

        Returns
        -------
        self : ScalarMix
            Fitted.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=False)
        if X.shape[1] % self.n_layers:
            raise ValueError(
                f"X has {X.shape[1]} columns, which are not {self.n_layers} layers of the same width (n_layers="
                f"{self.n_layers})."
            )
        self._n_features_out = X.shape[1] // self.n_layers
        layers = self._split(X, self.n_layers)
        scales = layers.std(axis=(0, 2))
        self.scales_ = np.where(scales > 0, scales, 1.0)
        self.weights_, self.n_iter_ = self._learn(layers / self.scales_[:, None], y)
        return self

    def transform(self, X) -> np.ndarray:
        """Add up the layers.

        Parameters
        ----------
        X : array-like of shape (n, n_layers * width)
            As in ``fit``.

        Returns
        -------
        mixed : ndarray of shape (n, width), float64
            Weighted sums of the scaled layers.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        layers = self._split(X, len(self.weights_))
        return sum(layers[:, index] * factor for index, factor in enumerate(self.weights_ / self.scales_))

    @staticmethod
    def _split(X: np.ndarray, n_layers: int) -> np.ndarray:
        return X.reshape(len(X), n_layers, -1)

    def _learn(self, layers: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, int]:
        """Fit weights and linear model together; return the weights and the number of steps."""
        loss, n_outputs = _loss_of(y)
        inputs = torch.from_numpy(layers - layers.mean(axis=0))
        logits = torch.zeros(self.n_layers, dtype=torch.float64, requires_grad=True)
        coef = torch.zeros((layers.shape[2], n_outputs), dtype=torch.float64, requires_grad=True)
        intercept = torch.zeros(n_outputs, dtype=torch.float64, requires_grad=True)
        parameters = [logits, coef, intercept]
        solver = torch.optim.LBFGS(parameters, max_iter=self.max_iter, line_search_fn="strong_wolfe")

        @torch.enable_grad()
        def objective():
            solver.zero_grad()
            mixed = torch.einsum("l,nlw->nw", torch.softmax(logits, dim=0), inputs)
            size = coef.square().sum() / (2 * self.C * len(inputs))
            total = loss(mixed @ coef + intercept) + size + self.penalty * logits.square().sum()
            total.backward()
            return total

        solver.step(objective)
        return torch.softmax(logits.detach(), dim=0).numpy(), solver.state[logits]["n_iter"]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def _loss_of(y: np.ndarray):
    """Return what the linear model minimises, and how many outputs it has."""
    if type_of_target(y).startswith("continuous"):
        numbers = torch.from_numpy((y - y.mean()) / (y.std() or 1.0))
        return lambda output: functional.mse_loss(output[:, 0], numbers), 1
    check_classification_targets(y)
    classes, codes = np.unique(y, return_inverse=True)
    labels = torch.from_numpy(codes)
    return lambda output: functional.cross_entropy(output, labels), len(classes)
