"""Mean and spread of columns, and which of them are constant."""

import numpy as np

_NARROW = 0.01


def is_constant(mean: np.ndarray, variance: np.ndarray, n_rows: int) -> np.ndarray:
    """Tell where a variance is no more than the rounding errors of its computation in float64.

    The rule is that of scikit-learn's :class:`~sklearn.preprocessing.StandardScaler`: the variance of a column of 0.1
    is not exactly 0.

    Parameters
    ----------
    mean, variance : ndarray of float64, of one shape
        As computed.
    n_rows : int
        Of how many values.

    References
    ----------
    Chan, T. F., Golub, G. H., LeVeque, R. J.: Algorithms for Computing the Sample Variance: Analysis and
    Recommendations. The American Statistician 37, 1983.
    """
    epsilon = np.finfo(np.float64).eps
    return variance <= n_rows * epsilon * variance + (n_rows * mean * epsilon) ** 2


def mean_and_spread(values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean and standard deviation of each column; those of constant columns are exactly 0.

    Parameters
    ----------
    values : ndarray of shape (n, n_columns)
        Computed with in float64.
    weight : ndarray of shape (n,)
        How much each row counts.
    """
    _, exponent = np.frexp(np.abs(values).max(axis=0).astype(np.float64))
    unit = np.ldexp(1.0, exponent - 1)  # in which squares are numbers, too; a power of two leaves no trace
    values = values / unit
    mean = np.average(values, axis=0, weights=weight)
    variance = np.average((values - mean) ** 2, axis=0, weights=weight)
    return mean * unit, np.sqrt(np.where(is_constant(mean, variance, len(values)), 0.0, variance)) * unit


def scale_of_embeddings(embeddings: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and scale by which a head sees embeddings standardised.

    What hardly moves here may move elsewhere: scaled up by its own spread it would decide alone. So no column has a
    scale below one hundredth of the median of those that move, and one that is constant here has that median.

    Parameters
    ----------
    embeddings : ndarray of shape (n, width)
        One row per image.
    weight : ndarray of shape (n,)
        How much each row counts.
    """
    mean, spread = mean_and_spread(embeddings, weight)
    if not spread.any():
        return mean, np.ones_like(spread)
    typical = np.median(spread[spread > 0])
    return mean, np.where(spread > 0, np.maximum(spread, _NARROW * typical), typical)
