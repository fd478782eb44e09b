"""Which rows early stopping holds out of training."""

import numpy as np
from sklearn.model_selection import train_test_split

EARLY_STOPPING_FROM = 10_000


def wants_held_out(early_stopping, n_rows: int) -> bool:
    """Tell whether early stopping wants rows of its own; "auto" does so where there are many."""
    return n_rows >= EARLY_STOPPING_FROM if early_stopping == "auto" else bool(early_stopping)


def split_rows(n_rows: int, fraction: float, strata: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose rows to hold out.

    Parameters
    ----------
    n_rows : int
        How many rows there are.
    fraction : float
        Share of them to hold out, rounded up.
    strata : ndarray of int, shape (n_rows,), or None
        Class of each row; every class is held out in proportion.
    seed : int
        Decides which.

    Returns
    -------
    kept, held_out : ndarray of int
        Positions of rows, ascending.
    """
    n_valid = int(np.ceil(fraction * n_rows))
    if n_valid >= n_rows:
        raise ValueError(f"early_stopping holds out {n_valid} of {n_rows} rows, so that none is left. {_WAYS_OUT}")
    if strata is not None:
        counts = np.bincount(strata)
        if counts.min() < 2 or not len(counts) <= n_valid <= n_rows - len(counts):
            raise ValueError(
                f"early_stopping holds out {n_valid} of {n_rows} rows, stratified over {len(counts)} classes, and the "
                f"rarest class has {counts.min()}. {_WAYS_OUT}"
            )
    kept, held_out = train_test_split(np.arange(n_rows), test_size=n_valid, stratify=strata, random_state=seed)
    return np.sort(kept), np.sort(held_out)


_WAYS_OUT = "Give more rows, a larger validation_fraction, X_val and y_val, or early_stopping=False."
