"""Which rows early stopping holds out of training."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold, train_test_split

EARLY_STOPPING_FROM = 10_000


def wants_held_out(early_stopping, n_rows: int) -> bool:
    """Tell whether early stopping wants rows of its own; "auto" does so where there are many."""
    return n_rows >= EARLY_STOPPING_FROM if early_stopping == "auto" else bool(early_stopping)


def groups_of_merged(groups: np.ndarray, merged: np.ndarray) -> np.ndarray:
    """Return one group per merged row; groups that share a row become one.

    Parameters
    ----------
    groups : ndarray of shape (n,)
        Labels of any type.
    merged : ndarray of int, shape (n,)
        For each row given, which merged row it is part of.
    """
    _, labels = np.unique(groups, return_inverse=True)
    n_merged, n_labels = merged.max() + 1, labels.max() + 1
    links = coo_array((np.ones(len(merged)), (merged, n_merged + labels)), shape=[n_merged + n_labels] * 2)
    return connected_components(links, directed=False)[1][:n_merged]


def split_rows(
    n_rows: int, fraction: float, strata: np.ndarray | None, groups: np.ndarray | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose rows to hold out.

    Parameters
    ----------
    n_rows : int
        How many rows there are.
    fraction : float
        Share of them to hold out, rounded up; with groups, nearly.
    strata : ndarray of int, shape (n_rows,), or None
        Class of each row; every class is held out in proportion.
    groups : ndarray of int, shape (n_rows,), or None
        Rows of one group are all held out or all kept.
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
    if groups is not None:
        kept, held_out = _split_groups(n_rows, fraction, strata, groups, seed)
    else:
        kept, held_out = train_test_split(np.arange(n_rows), test_size=n_valid, stratify=strata, random_state=seed)
    return np.sort(kept), np.sort(held_out)


def _split_groups(n_rows: int, fraction: float, strata, groups, seed: int) -> tuple[np.ndarray, np.ndarray]:
    n_groups = len(np.unique(groups))
    if n_groups < 2:
        raise ValueError(
            "early_stopping holds out whole groups, and all rows are of one group, or linked to it by rows of the same "
            f"content. {_WAYS_OUT}"
        )
    if strata is None:
        splitter = GroupShuffleSplit(n_splits=1, test_size=fraction, random_state=seed)
        return next(splitter.split(np.zeros(n_rows), groups=groups))
    swapped = fraction > 0.5  # folds are at most half of the rows
    n_folds = round(1 / (1 - fraction if swapped else fraction))
    n_folds = max(2, min(n_folds, n_groups, int(np.bincount(strata).min())))
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    splits = [parts[::-1] if swapped else parts for parts in folds.split(np.zeros(n_rows), strata, groups)]
    kept, held_out = max(splits, key=lambda parts: _quality(*parts, strata, fraction))
    missing = np.setdiff1d(strata, strata[kept])
    if len(missing) or not len(held_out):
        raise ValueError(
            f"early_stopping holds out whole groups, and of these {n_groups} none can be held out without a class "
            f"losing all its rows. {_WAYS_OUT}"
        )
    return kept, held_out


def _quality(kept, held_out, strata, fraction: float) -> tuple:
    """Rank splits: all classes are trained, rows are held out, of many classes, nearly as many as asked for."""
    distance = abs(len(held_out) / len(strata) - fraction)
    return len(np.unique(strata[kept])), len(held_out) > 0, len(np.unique(strata[held_out])), -distance


_WAYS_OUT = "Give more rows, a larger validation_fraction, X_val and y_val, or early_stopping=False."
