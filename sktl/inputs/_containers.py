"""What X is: which container holds the rows, and whether its rows are images at all."""

import os
import sys
from collections.abc import Iterator, Mapping, MappingView, Set
from operator import attrgetter

import numpy as np
from PIL import Image

from sktl.exceptions import InputError
from sktl.inputs._arrays import find_layout
from sktl.inputs._errors import RowError

_N_TRIED = 20  # rows of a foreign container that may fail before it is asked no further


class ArrayRows:
    """The rows of a 3-D or 4-D array or tensor.

    Parameters
    ----------
    array : array-like or tensor of shape (N, H, W), (N, H, W, C) or (N, C, H, W)
        The images.
    channels : {"first", "last"} or None
        Layout of a 4-D array; ``None`` detects it.
    known_stack : bool, default=False
        Whether a 3-D array is known to hold N grey images, and no single image in colour.
    """

    def __init__(self, array, channels: str | None, known_stack: bool = False):
        self.array = array
        self.channels = _check_array(array, channels, known_stack)

    def __len__(self) -> int:
        return self.array.shape[0]

    def __getitem__(self, index: int):
        return self.array[index]


class _PositionalRows:
    """The rows of a pandas column by position, whatever its index."""

    def __init__(self, column):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: int):
        return self._column.iloc[index]


class _ArrowRows:
    """The rows of an Arrow array as Python objects."""

    def __init__(self, column):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: int):
        return self._column[index].as_py()


def holds_images(X) -> bool:
    """Say whether X is a container of images, or something that scikit-learn's ``validate_data`` must judge.

    Looks at the first row that is not missing, and reads no file. Never raises.

    Parameters
    ----------
    X : object
        Anything.

    Returns
    -------
    holds_images : bool
        True for a column of paths, bytes, file objects, Pillow images or arrays and for 3-D and 4-D arrays and tensors;
        also for a single image, which :func:`open_rows` refuses in words that help. False for numbers in one or two
        dimensions, frames of several columns, sparse matrices and all else.

    Examples
    --------
    >>> import numpy as np
    >>> from sktl.inputs import holds_images
    >>> holds_images(["cat.jpg", "dog.jpg"]), holds_images(np.zeros((10, 28, 28))), holds_images(np.zeros((10, 784)))
    (True, True, False)
    """
    try:
        if is_single(X) or _is_image_array(X):
            return True
        return is_image(_first_item(find_column(X)))
    except Exception:  # asks questions of foreign objects; one that cannot answer is no image container
        return False


def find_rows(X, channels: str | None, known_stack: bool = False):
    """Find the rows of X.

    Parameters
    ----------
    X : object
        Anything.
    channels : {"first", "last"} or None
        Layout of arrays.
    known_stack : bool, default=False
        As for :class:`ArrayRows`.

    Returns
    -------
    rows : object
        With ``len`` and access by position; items are as they stand in X.
    """
    refuse_single(X)
    refuse_unordered(X)
    if _is_array(X):
        return ArrayRows(X, channels, known_stack)
    column = find_column(X)
    if column is None:
        raise InputError(
            "X must be a list, array, tensor or column of image paths, bytes, file objects, Pillow images or arrays, "
            f"got {type(X).__name__} instead.{_hint(X)}"
        )
    return column


def item_of(source, position: int):
    """Return a row of a container.

    Parameters
    ----------
    source : sequence
        What :func:`find_rows` or :func:`find_column` returns.
    position : int
        Which row.

    Raises
    ------
    RowError
        If the container fails: a foreign one may decode here (Hugging Face datasets do), and fails as it likes.
    """
    try:
        return source[position]
    except Exception as error:
        raise RowError(f"{type(source).__name__} cannot give this row: {error!r}") from error


def refuse_single(X) -> None:
    """Raise an error if X is one image, whose length or shape could pass for a number of rows.

    Parameters
    ----------
    X : object
        Anything.

    Raises
    ------
    InputError
        If it is a path, bytes, file object or Pillow image.
    """
    if is_single(X):
        raise InputError(f"X must hold rows, got a single image ({type(X).__name__}) instead; wrap it in a list: [X]")


def refuse_unordered(values, name: str = "X") -> None:
    """Raise an error if values have no positions, but would have them as a list.

    Parameters
    ----------
    values : object
        Anything.
    name : str, default="X"
        What they are called in messages.

    Raises
    ------
    InputError
        If they are an iterator, a set or the view of a mapping, such as its keys.
    """
    if isinstance(values, Iterator) and not hasattr(values, "__getitem__") and not _is_stream(values):
        reason = "which can be read once only"
    elif isinstance(values, Set | MappingView):
        reason = "whose rows have no numbers"
    else:
        return
    kind = type(values).__name__
    raise InputError(f"{name} must be a list, array or column, got {kind} instead, {reason}; pass list({name}).")


def refuse_nested(X) -> None:
    """Raise an error if X is a list of lists with something in them that is no number but may be an image.

    Parameters
    ----------
    X : object
        Anything that :func:`holds_images` says no to.

    Raises
    ------
    InputError
        Says how to make one flat list of it.
    """
    if not isinstance(X, list | tuple):
        return
    row, first = next(((row, item) for row, item in enumerate(X) if not is_missing(item)), (0, None))
    if not isinstance(first, list | tuple):
        return
    place = next((place for place, value in enumerate(first) if is_image(value)), None)
    if place is not None:
        what = f"the string {first[place]!r}" if isinstance(first[place], str) else f"a {type(first[place]).__name__}"
        raise InputError(
            f"Row {row} of X is a {type(first).__name__} that holds {what}, which is no number. If it stands for an "
            f"image, X must be one flat list: pass [row[{place}] for row in X]."
        )


def is_single(X) -> bool:
    """Say whether X is one image and not rows of them.

    Parameters
    ----------
    X : object
        Anything.

    Returns
    -------
    is_single : bool
        True for a path, bytes, file object or Pillow image.
    """
    return isinstance(X, str | os.PathLike | bytes | bytearray | memoryview | Image.Image) or _is_stream(X)


def is_missing(item) -> bool:
    """Say whether a row is empty.

    Parameters
    ----------
    item : object
        A row.

    Returns
    -------
    is_missing : bool
        True for None, NaN, ``pandas.NA`` and ``NaT``.
    """
    if isinstance(item, float | np.floating):
        return bool(np.isnan(item))
    return item is None or type(item).__name__ in ("NAType", "NaTType")


def is_image(item) -> bool:
    """Say whether a row is something that may be an image.

    Parameters
    ----------
    item : object
        A row.

    Returns
    -------
    is_image : bool
        By type and shape alone.
    """
    if isinstance(item, Mapping):
        return "bytes" in item or "path" in item
    return is_single(item) or (_is_array(item) and len(item.shape) in (2, 3) and _is_numeric(item.dtype))


def find_column(X):
    """Find the one column of X.

    Parameters
    ----------
    X : object
        Anything.

    Returns
    -------
    column : object or None
        With ``len`` and access by position that gives Python objects; None if X has not exactly one column.
    """
    if _is_a(X, "pandas", "DataFrame"):
        return _PositionalRows(X.iloc[:, 0]) if X.shape[1] == 1 else None
    if _is_a(X, "pandas", "Series"):
        return _PositionalRows(X)
    if _is_a(X, "pandas", "Index", "api.extensions.ExtensionArray"):
        return X
    if _is_a(X, "polars", "DataFrame"):
        return X.to_series(0) if X.width == 1 else None
    if _is_a(X, "pyarrow", "Table", "RecordBatch"):
        return _ArrowRows(X.column(0)) if X.num_columns == 1 else None
    if _is_a(X, "pyarrow", "Array", "ChunkedArray"):
        return _ArrowRows(X)
    if isinstance(X, np.ndarray):
        X = X[:, 0] if X.ndim == 2 and X.shape[1] == 1 else X  # the form that BaggingClassifier and others ask for
        return X if X.ndim == 1 and X.dtype.kind in "OUST" else None
    if _is_a(X, "polars", "Series") or isinstance(X, list | tuple):
        return X
    is_sequence = hasattr(X, "__len__") and hasattr(X, "__getitem__") and not isinstance(X, Mapping | Set | type)
    return X if is_sequence and not hasattr(X, "shape") and not is_single(X) else None


def _is_a(X, module: str, *names: str) -> bool:
    """``isinstance`` for a library that is not imported for the question: without it X cannot be of its types."""
    library = sys.modules.get(module)
    return library is not None and isinstance(X, tuple(attrgetter(name)(library) for name in names))


def _is_stream(X) -> bool:
    return hasattr(X, "read") and hasattr(X, "seek")


def _is_array(X) -> bool:
    if isinstance(X, np.ndarray):
        return X.dtype.kind not in "OUST"
    is_table = _is_a(X, "pandas", "DataFrame", "Series", "Index", "api.extensions.ExtensionArray")
    is_table = is_table or _is_a(X, "polars", "DataFrame", "Series") or hasattr(X, "tocsr")
    return hasattr(X, "shape") and hasattr(X, "dtype") and hasattr(X, "__getitem__") and not is_table


def _is_image_array(X) -> bool:
    return _is_array(X) and len(X.shape) in (3, 4) and _is_numeric(X.dtype)


def _is_numeric(dtype) -> bool:
    return not isinstance(dtype, np.dtype) or dtype.kind in "buif"


def _first_item(column):
    if column is None:
        return None
    n_failed = 0
    for index in range(len(column)):
        try:
            item = column[index]
        except Exception:
            n_failed += 1
            if n_failed == _N_TRIED:
                raise
            continue
        if not is_missing(item):
            return item
    return None


def _check_array(array, channels: str | None, known_stack: bool) -> str | None:
    shape = tuple(array.shape)
    if len(shape) not in (3, 4):
        raise InputError(
            f"X must be of shape (N, H, W), (N, H, W, C) or (N, C, H, W), got {shape} instead."
            + (" Flattened images need image_shape=." if len(shape) == 2 else "")
        )
    if not _is_numeric(array.dtype):
        raise InputError(f"X must be uint8, or float in [0, 1], got dtype {array.dtype} instead.")
    if 0 in shape[1:]:
        raise InputError(f"X of shape {shape} holds images without pixels.")
    if len(shape) == 3:
        return None if known_stack else _check_grey(shape)
    try:
        return find_layout(shape[1:], channels)
    except RowError as error:
        raise InputError(f"X of shape {shape}: {error}") from None


def _check_grey(shape: tuple[int, ...]) -> None:
    """Refuse what is more likely one colour picture than N grey ones: no one has grey pictures 3 pixels wide."""
    if shape[-1] in (1, 3, 4) or (shape[0] == 3 and min(shape[1:]) > 4):
        raise InputError(
            f"X of shape {shape} may be a single colour image. If so, wrap a single image in a list: [X]; if it is "
            f"{shape[0]} grey images, say so with a channel axis: X[..., None]"
        )


def _hint(X) -> str:
    if hasattr(X, "columns") or hasattr(X, "column_names"):
        return " Choose the one column that holds the images."
    return ""
