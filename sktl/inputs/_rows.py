"""Rows of X: indexable, hashable by content, decoded one at a time."""

import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
from PIL import Image

from sktl.exceptions import InputError, InputWarning
from sktl.inputs._arrays import array_to_rgb
from sktl.inputs._containers import ArrayRows, find_rows, is_image, is_missing, item_of
from sktl.inputs._decode import MAX_PIXELS, decode, pillow_to_rgb
from sktl.inputs._errors import RowError
from sktl.inputs._files import DigestMemo, LocalFile, check_data, read_stream, refuse_url

_BYTES_PER_PIXEL = 8  # of the widest encoding, 16-bit RGBA; no image that max_pixels allows needs a longer file
_BYTES_BESIDE_PIXELS = 2**26
_N_LABEL = 160

_file_digests = DigestMemo(capacity=2**18)  # by the identity of the file
_pixel_digests = DigestMemo(capacity=2**18)  # by the hash of the file's content


@dataclass
class _Reading:
    """How rows are read; shared by all that is taken from one X."""

    channels: str | None
    root: str | None
    max_pixels: int
    warned: bool = field(default=False, compare=False)

    @property
    def max_bytes(self) -> int:
        return self.max_pixels * _BYTES_PER_PIXEL + _BYTES_BESIDE_PIXELS


class Row:
    """One image of X, read but perhaps not decoded yet.

    Rows come from :class:`Rows`. The same file content has the same digest, whether it came as path, bytes or file
    object; the same pixels have the same digest, whether they came as array, tensor or Pillow image.
    """

    _digest: bytes | None = None

    @property
    def digest(self) -> bytes:
        """Hash of the content, 32 bytes; computed when first asked for."""
        if self._digest is None:
            self._digest = self._hash()
        return self._digest

    def pixels(self) -> np.ndarray:
        """Decode the image.

        Returns
        -------
        pixels : ndarray of uint8 of shape (H, W, 3)
            RGB, upright, on white; C-contiguous and read-only, for it may share memory with X.

        Raises
        ------
        RowError
            If it cannot be decoded.
        """
        raise NotImplementedError

    def pixel_digest(self) -> bytes:
        """Return a hash of the pixels, 32 bytes: the same for a file, whatever its format, and for an array."""
        return _hash_pixels(self.pixels())

    def _hash(self) -> bytes:
        raise NotImplementedError


class _EncodedRow(Row):
    def __init__(self, data: bytes, label: str, reading: _Reading):
        self._data, self._label, self._reading = data, label, reading

    def pixels(self) -> np.ndarray:
        pixels, is_first_of_many = decode(self._data, self._reading.max_pixels)
        if is_first_of_many and not self._reading.warned:
            self._reading.warned = True
            warnings.warn(
                f"{self._label} holds several frames or pages; the first is used. Further such rows are not reported.",
                InputWarning,
                stacklevel=2,
            )
        return pixels

    def pixel_digest(self) -> bytes:
        known = _pixel_digests.get(self.digest)
        if known is None:
            known = super().pixel_digest()
            _pixel_digests.put(self.digest, known)
        return known

    def _hash(self) -> bytes:
        digest = hashlib.sha256(b"file\0")
        digest.update(self._data)
        return digest.digest()


class _FileRow(_EncodedRow):
    """A file; read at once, unless its hash is known and perhaps all that is wanted."""

    def __init__(self, file: LocalFile, label: str, reading: _Reading):
        self._file = file
        self._digest = _file_digests.get(file.identity)
        super().__init__(file.read() if self._digest is None else None, label, reading)

    def pixels(self) -> np.ndarray:
        if self._data is None:
            self._data = self._file.read()
        return super().pixels()

    def _hash(self) -> bytes:
        digest = super()._hash()
        if self._file.is_settled:
            _file_digests.put(self._file.identity, digest)
        return digest


class _PixelRow(Row):
    def __init__(self, pixels: np.ndarray):
        self._pixels = pixels.view()
        self._pixels.flags.writeable = False

    def pixels(self) -> np.ndarray:
        return self._pixels

    def pixel_digest(self) -> bytes:
        return self.digest

    def _hash(self) -> bytes:
        return _hash_pixels(self._pixels)


def _hash_pixels(pixels: np.ndarray) -> bytes:
    digest = hashlib.sha256(b"pixels\0" + repr(pixels.shape).encode())
    digest.update(pixels.data)
    return digest.digest()


class Rows:
    """The images of X as a sequence of :class:`Row`; built by :func:`open_rows`.

    Rows are read when they are asked for, from several threads if need be. Pickles if X does.

    Parameters
    ----------
    source : sequence
        Items as they stand in X.
    reading : object
        How to read them.
    positions : ndarray of int, default=None
        Which items of ``source`` these rows are; all by default.
    """

    def __init__(self, source, reading: _Reading, positions: np.ndarray | None = None):
        self._source = source
        self._reading = reading
        self._positions = np.arange(len(source)) if positions is None else positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Row:
        """Read one row.

        Parameters
        ----------
        index : int
            Position in these rows.

        Returns
        -------
        row : Row
            Read from its file, but not decoded.

        Raises
        ------
        RowError
            If it cannot be read, or is not an image.
        """
        item = self._item(index)
        return _open_row(item, self._label(index, item), self._reading)

    def label(self, index: int) -> str:
        """Name a row as the user knows it.

        Parameters
        ----------
        index : int
            Position in these rows.

        Returns
        -------
        label : str
            Its position in X, also after :meth:`take`, and its path where it has one.
        """
        try:
            item = self._item(index)
        except RowError:
            item = None
        return self._label(index, item)

    def position(self, index: int) -> int:
        """Return where in X a row stands, also after :meth:`take`."""
        return int(self._positions[index])

    def take(self, indices) -> "Rows":
        """Choose rows.

        Parameters
        ----------
        indices : array-like of int or bool
            Positions in these rows, or a mask.

        Returns
        -------
        rows : Rows
            The chosen rows, in this order; they keep their labels.
        """
        indices = np.asarray(indices)
        if indices.size == 0 and indices.dtype.kind != "b":
            indices = indices.astype(np.intp)
        return Rows(self._source, self._reading, self._positions[indices])

    def _label(self, index: int, item) -> str:
        name = _name(item)
        place = f"row {self._positions[index]}"
        return place if name is None else f"{place} ({_shorten(name)!r})"

    def _item(self, index: int):
        return item_of(self._source, int(self._positions[index]))


def open_rows(
    X, *, channels: str | None = None, root=None, max_pixels: int = MAX_PIXELS, known_stack: bool = False
) -> Rows:
    """Make a sequence of rows of any container of images.

    No file is read. A row that cannot be used shows when it is asked for, as :class:`RowError`.

    Parameters
    ----------
    X : sequence, array, tensor or column
        Paths, bytes, binary file objects, Pillow images, arrays or tensors (also of different sizes), or Hugging Face
        dicts of "bytes" and "path", in a list, tuple, 1-D object array, one-column frame, pandas, polars or Arrow
        column, or anything with ``len`` and access by position; or an array or tensor of shape (N, H, W),
        (N, H, W, C) or (N, C, H, W). uint8, float in [0, 1], uint16, bool, or other integers within 0..255.
    channels : {"first", "last"}, default=None
        Layout of colour arrays. None detects it from the axis of length 1, 3 or 4; if both are, that is an
        error.
    root : str or path-like, default=None
        Folder that relative paths start from. With it, no path may lead elsewhere, be it by "..", as an absolute path
        or through symbolic links.
    max_pixels : int, default=MAX_PIXELS
        Files with larger images are refused before they are decoded. Pillow's own limit, twice
        ``PIL.Image.MAX_IMAGE_PIXELS``, holds besides.
    known_stack : bool, default=False
        Whether X, if it is of shape (N, H, W), is known to hold N grey images. Else a shape that may be that of a
        single image in colour is refused.

    Returns
    -------
    rows : Rows
        The rows of X.

    Raises
    ------
    InputError
        If X is empty, of the wrong type or shape, or of ambiguous layout.

    Examples
    --------
    >>> import numpy as np
    >>> from sktl.inputs import open_rows
    >>> rows = open_rows(np.zeros((10, 3, 32, 32), dtype=np.uint8))
    >>> len(rows), rows[0].pixels().shape
    (10, (32, 32, 3))
    """
    if channels not in (None, "first", "last"):
        raise InputError(f"The 'channels' parameter must be 'first', 'last' or None, got {channels!r} instead.")
    if root is not None and not os.path.isdir(root):
        raise InputError(f"The 'root' parameter must be an existing folder, got {root!r} instead.")
    if not isinstance(max_pixels, Integral) or max_pixels < 1:
        raise InputError(f"The 'max_pixels' parameter must be an int above 0, got {max_pixels!r} instead.")
    source = find_rows(X, channels, known_stack)
    if len(source) == 0:
        raise InputError("X holds no rows; at least one is needed.")
    if isinstance(source, ArrayRows):
        channels = source.channels
    rows = Rows(source, _Reading(channels, None if root is None else os.fsdecode(root), int(max_pixels)))
    _check_first(rows)
    return rows


def _check_first(rows: Rows) -> None:
    """Refuse at once what is wrong with X as a whole; what is wrong with one row shows when it is read."""
    try:
        item = rows._item(0)
    except RowError:
        return
    if isinstance(item, str):
        try:
            refuse_url(item)
        except RowError as error:
            raise InputError(f"{rows.label(0)} of X: {error}") from None
    if not is_missing(item) and not is_image(item):
        raise InputError(f"Rows of X must be {_EXPECTED}, {rows.label(0)} is {_describe(item)}.")


_EXPECTED = "paths, bytes, binary file objects, Pillow images or arrays"


def _open_row(item, label: str, reading: _Reading) -> Row:
    if isinstance(item, Mapping):
        item = _unwrap_dict(item)
    if is_missing(item):
        raise RowError("missing value")
    if isinstance(item, str | os.PathLike):
        return _FileRow(LocalFile(item, reading.root, reading.max_bytes), label, reading)
    if isinstance(item, bytes | bytearray | memoryview):
        return _EncodedRow(check_data(item, reading.max_bytes), label, reading)
    if isinstance(item, Image.Image):
        return _PixelRow(pillow_to_rgb(item, reading.max_pixels))
    if hasattr(item, "read"):
        return _EncodedRow(read_stream(item, reading.max_bytes), label, reading)
    if hasattr(item, "shape"):
        return _PixelRow(array_to_rgb(item, reading.channels))
    raise RowError(f"expected {_EXPECTED}, got {_describe(item)}")


def _unwrap_dict(item: Mapping):
    """Hugging Face's image rows hold the content, or where it is, or both."""
    content = item.get("bytes")
    return item.get("path") if content is None else content


def _name(item) -> str | None:
    if isinstance(item, Mapping):
        item = item.get("path")
    if isinstance(item, Image.Image):
        item = getattr(item, "filename", None) or None
    elif hasattr(item, "read") and not isinstance(item, os.PathLike):
        item = getattr(item, "name", None)
    return str(os.fsdecode(item)) if isinstance(item, str | os.PathLike) else None  # numpy's str shows as np.str_(...)


def _shorten(name: str) -> str:
    return name if len(name) <= _N_LABEL else f"{name[: _N_LABEL // 2]}...{name[-_N_LABEL // 2 :]}"


def _describe(item) -> str:
    shape = getattr(item, "shape", ())
    return f"{type(item).__name__} of shape {tuple(shape)}" if shape else type(item).__name__
