"""Checks that y and groups have a value for each row, and only one."""

from collections.abc import Set
from typing import Any

import numpy as np
from scipy.sparse import issparse

from sktl.inputs import is_missing

_NEVER_MISSING = {str, np.str_, bytes, np.bytes_, bool, np.bool_, int}


def refuse_missing(values, name: str, way_out: str) -> None:
    """Raise an error if a row has no value, before NumPy makes the word "nan" of it.

    Parameters
    ----------
    values : array-like of shape (n,) or (n, n_columns)
        Of any type.
    name : str
        What they are called in messages.
    way_out : str
        What to do about it, as a sentence.

    Raises
    ------
    ValueError
        If a value is None, NaN, ``pandas.NA`` or ``NaT``; names the first such row.
    """
    if issparse(values):
        return
    values = _as_given(values)
    missing = _missing(values)
    rows = np.flatnonzero(missing.any(axis=tuple(range(1, missing.ndim)))) if missing.ndim else ()
    if not len(rows):
        return
    shown = values[missing][0]
    more = f", and {len(rows) - 1:,} more like it" if len(rows) > 1 else ""
    raise ValueError(f"{name}[{rows[0]}] is missing ({shown}){more}. {way_out}")


def refuse_several(y, name: str) -> None:
    """Raise an error if rows have lists, tuples or sets of labels, and say how to make columns of them.

    Parameters
    ----------
    y : array-like
        Labels.
    name : str
        What they are called in messages.

    Raises
    ------
    ValueError
        Names the first such row. Lists or tuples of as many 0 and 1 each are columns already.
    """
    if issparse(y):
        return
    labels = _as_given(y)
    if labels.dtype != object:
        return
    row = _first_with_several(labels, isinstance(y, list | tuple))
    if row is not None:
        found = y[row] if isinstance(y, list | tuple) else labels[row]
        raise ValueError(
            f"{name}[{row}] is a {type(found).__name__} of labels, {found}; one label is expected. Where several may "
            "hold for a row, give a column of 0 and 1 for each of them: "
            f"sklearn.preprocessing.MultiLabelBinarizer().fit_transform({name})."
        )


def _as_given(values) -> np.ndarray:
    """Return an array of the very objects, unless the values have a type of NumPy's already."""
    has_dtype = isinstance(getattr(values, "dtype", None), np.dtype)
    return np.asarray(values) if has_dtype else np.asarray(values, dtype=object)


def _missing(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "fmM":
        return np.isnan(values)
    if values.dtype.kind not in "OT" or set(map(type, values.flat)) <= _NEVER_MISSING:
        return np.zeros(values.shape, dtype=bool)
    return np.array([is_missing(value) for value in values.flat], dtype=bool).reshape(values.shape)


def _first_with_several(labels: np.ndarray, is_list: bool) -> int | None:
    if labels.ndim == 1:
        return next((row for row, label in enumerate(labels) if _is_collection(label)), None)
    if labels.ndim == 2 and labels.shape[1] > 1 and is_list:
        return next((row for row, each in enumerate(labels) if any(value not in (0, 1) for value in each)), None)
    return None


def _is_collection(label: Any) -> bool:
    return isinstance(label, list | tuple | Set | np.ndarray)
