"""Rows of X that are texts: which container holds them, what each says, and its tokens."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from sktl.exceptions import InputError, InputWarning
from sktl.inputs._containers import find_column, is_missing, is_single, item_of, refuse_unordered
from sktl.inputs._errors import RowError

_N_LABEL = 60
_N_SAMPLE = 20  # rows that are looked at to tell texts from paths
_N_TEXT_WORDS = 3  # few paths have as many
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")


class TextRow:
    """One text.

    Parameters
    ----------
    text : str
        Not blank, and without lone surrogates.
    encode : callable
        Gives its tokens as an array ``ids``, and whether it ``is_truncated``.
    note_truncation : callable
        Called with the row's digest if its tokens were truncated.
    """

    def __init__(self, text: str, encode: Callable[[str], Any], note_truncation: Callable[[bytes], None]):
        self._text = text
        self._encode = encode
        self._note_truncation = note_truncation

    @cached_property
    def digest(self) -> bytes:
        """Content hash, 32 bytes."""
        return _digest(self._text)

    @property
    def length(self) -> int:
        """How many tokens the row is padded to; rows of one length can be computed together."""
        return len(self._ids)

    def model_input(self) -> np.ndarray:
        """Return the tokens, int32 of shape (length,), padded with -1."""
        return self._ids

    @cached_property
    def _ids(self) -> np.ndarray:
        tokens = self._encode(self._text)
        if tokens.is_truncated:
            self._note_truncation(self.digest)
        return tokens.ids


class TextRows:
    """The texts of X as a sequence of :class:`TextRow`; built by :func:`open_texts`.

    Parameters
    ----------
    source : sequence
        Items as they stand in X.
    encode : callable
        Takes a text, gives its tokens.
    positions : ndarray of int, default=None
        Which items of ``source`` these rows are; all by default.
    """

    def __init__(self, source, encode: Callable[[str], Any], positions: np.ndarray | None = None):
        self._source = source
        self._encode = encode
        self._positions = np.arange(len(source)) if positions is None else positions
        self._truncated: set[bytes] = set()
        self._has_warned = False

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> TextRow:
        """Read one row; raises :class:`RowError` if it is no text."""
        return TextRow(read_text(self._item(index)), self._encode, self._truncated.add)

    def label(self, index: int) -> str:
        """Name a row as the user knows it: by its position in X, and how it begins."""
        place = f"row {self.position(index)}"
        try:
            item = self._item(index)
        except RowError:
            return place
        return f"{place} ({_shorten(item)!r})" if isinstance(item, str) and item.strip() else place

    def position(self, index: int) -> int:
        """Return where in X a row stands, also after :meth:`take`."""
        return int(self._positions[index])

    def take(self, indices) -> "TextRows":
        """Return some of the rows, by position or by a mask."""
        indices = np.asarray(indices)
        if indices.size == 0 and indices.dtype.kind != "b":
            indices = indices.astype(np.intp)
        return TextRows(self._source, self._encode, self._positions[indices])

    def warn_of_truncation(self, max_length: int) -> None:
        """Warn once if texts were cut off when they were tokenised, and say how many rows that are.

        Parameters
        ----------
        max_length : int
            Tokens that are kept.
        """
        if not self._truncated or self._has_warned:
            return
        self._has_warned = True
        n_rows = sum(self._digest_of(index) in self._truncated for index in range(len(self)))
        warnings.warn(
            f"{n_rows:,} of {len(self):,} texts are longer than the {max_length} tokens that the backbone takes; what "
            "comes after them is not used. Split long texts if it matters.",
            InputWarning,
            stacklevel=4,
        )

    def _digest_of(self, index: int) -> bytes | None:
        try:
            return _digest(read_text(self._item(index)))
        except RowError:
            return None

    def _item(self, index: int):
        return item_of(self._source, self.position(index))


def open_texts(X, encode: Callable[[str], Any]) -> TextRows:
    """Make a sequence of rows of any container of texts.

    A row that is no text shows when it is asked for, as :class:`RowError`.

    Parameters
    ----------
    X : sequence or column
        Strings, or bytes in UTF-8, in a list, tuple, 1-D array, one-column frame, pandas, polars or Arrow column, or
        anything with ``len`` and access by position.
    encode : callable
        Takes a text, gives its tokens.

    Returns
    -------
    rows : TextRows
        The rows of X.

    Raises
    ------
    InputError
        If X is empty, or plainly holds something else.

    Examples
    --------
    >>> from collections import namedtuple
    >>> from sktl.inputs import open_texts
    >>> Tokens = namedtuple("Tokens", ["ids", "is_truncated"])
    >>> rows = open_texts(["a cat", "a dog"], encode=lambda text: Tokens([len(word) for word in text.split()], False))
    >>> len(rows), rows[1].model_input()
    (2, [1, 3])
    """
    column = find_texts(X)
    if len(column) == 0:
        raise InputError("X holds no rows; at least one is needed.")
    _refuse_images(column)
    return TextRows(column, encode)


def find_texts(X):
    """Find the column of texts of X.

    Parameters
    ----------
    X : object
        Anything.

    Returns
    -------
    column : object
        With ``len`` and access by position.

    Raises
    ------
    InputError
        If X is no single column.
    """
    if is_single(X):
        raise InputError(f"X must hold rows, got a single text ({type(X).__name__}) instead; wrap it in a list: [X]")
    refuse_unordered(X)
    column = find_column(X)
    if column is not None:
        return column
    shape = getattr(X, "shape", None)
    what = type(X).__name__ if shape is None else f"{type(X).__name__} of shape {tuple(shape)}"
    columns = " Choose the one column that holds the texts." if hasattr(X, "columns") else ""
    raise InputError(f"X must be a list, array or column of texts, got {what} instead.{columns}")


def read_text(item, *, blank: bool = False) -> str:
    """Return the text of a row.

    Parameters
    ----------
    item : object
        A row as it stands in X.
    blank : bool, default=False
        Whether it may be blank.

    Returns
    -------
    text : str
        Without lone surrogates.

    Raises
    ------
    RowError
        If it is no such text.
    """
    if is_missing(item):
        raise RowError("missing value")
    if isinstance(item, bytes | bytearray | memoryview):
        try:
            item = bytes(item).decode("utf-8")
        except UnicodeDecodeError as error:
            raise RowError(f"its bytes are not UTF-8: {error.reason} at byte {error.start}") from None
    if not isinstance(item, str):
        raise RowError(f"expected a text (str, or bytes in UTF-8), got {type(item).__name__}")
    text = str(item)
    if not blank and not text.strip():
        raise RowError("empty text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"it holds a lone surrogate (half a character) at position {error.start}") from None
    return text


def refuse_texts(X, root: str | os.PathLike | None = None) -> None:
    """Raise an error if X, given to a backbone that takes images, plainly holds texts.

    Parameters
    ----------
    X : object
        Rows that are to be read as images.
    root : path-like, default=None
        Folder that relative paths start from.

    Raises
    ------
    InputError
        If at least half of its strings have several words, and none ends like an image file or names a file.
    """
    column = find_column(X)
    strings = [item for item in _sample(column) if isinstance(item, str)] if column is not None else []
    texts = [item for item in strings if "\n" in item or len(item.split()) >= _N_TEXT_WORDS]
    if texts and 2 * len(texts) >= len(strings) and not any(_may_be_path(item, root) for item in strings):
        raise InputError(
            f"X seems to hold texts ({_shorten(texts[0])!r}), and the backbone takes images: a string is read as the "
            "path of a file. For texts give a text encoder: backbone='text:org/name' or 'text:/folder'."
        )


def _refuse_images(column) -> None:
    """Raise an error if rows that are to be read as texts are plainly images."""
    items = _sample(column)
    if items and all(map(_is_plainly_image, items)):
        what = f"paths of images ({_shorten(items[0])!r})" if isinstance(items[0], str) else "images"
        raise InputError(
            f"X seems to hold {what}, and the backbone takes texts. For images give another backbone, such as "
            "backbone='sktl/tiny'."
        )


def _sample(column) -> list:
    """Return some of the rows that are not missing, from the whole of a column."""
    return list(_present(column, np.unique(np.linspace(0, len(column) - 1, _N_SAMPLE, dtype=int))))


def _present(column, indices: np.ndarray) -> Iterator[Any]:
    for index in indices if len(column) else ():
        try:
            item = column[int(index)]
        except Exception:  # of a foreign container: which row fails, and why, shows when it is read
            continue
        if not is_missing(item):
            yield item


def _may_be_path(item: str, root: str | os.PathLike | None) -> bool:
    if item.lower().endswith(_IMAGE_ENDINGS) or "\0" in item:
        return True
    return _exists(item if root is None else os.path.join(root, item))


def _is_plainly_image(item) -> bool:
    if isinstance(item, str):
        return item.lower().endswith(_IMAGE_ENDINGS) and (len(item.split()) == 1 or _exists(item))
    if isinstance(item, os.PathLike):
        return True
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item[:3]) == b"\xff\xd8\xff" or bytes(item[:4]) in (
            b"\x89PNG",
            b"RIFF",
            b"GIF8",
            b"II*\0",
            b"MM\0*",
        )
    return isinstance(item, Image.Image) or len(getattr(item, "shape", ())) in (2, 3)


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except (OSError, ValueError):
        return False


def _digest(text: str) -> bytes:
    return hashlib.sha256(b"text\0" + text.encode("utf-8")).digest()


def _shorten(text: str) -> str:
    return str(text) if len(text) <= _N_LABEL else f"{text[:_N_LABEL]}..."  # numpy's str shows as np.str_(...)
