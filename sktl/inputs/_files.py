"""Bytes of local files and file objects: regular files only, and never a wait."""

import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from sktl._forks import ForkSafeLock
from sktl.inputs._errors import RowError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:", re.ASCII)
_OPEN_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_SETTLED_NS = 3_000_000_000
_stream_lock = ForkSafeLock()  # a file object has one position, and rows are read from several threads


def refuse_url(text: str) -> None:
    """Raise if a string is a URL and not a path.

    Parameters
    ----------
    text : str
        What may be a path.
    """
    found = _URL.match(text)
    if found:
        raise RowError(f"{found[0]}... is a URL, and nothing is fetched from the network; download it first")


class LocalFile:
    """A regular local file, checked but not read yet.

    Parameters
    ----------
    path : str or path-like
        The file; symbolic links to regular files are followed.
    root : str or None
        Folder that relative paths start from and that no path may leave.
    max_bytes : int
        Larger files are refused unread.

    Attributes
    ----------
    identity : tuple of int
        Tells this state of the file from all others: device, inode, length, times of the last changes.
    is_settled : bool
        Whether the last change lay some seconds back when the file was checked. A change within the resolution of the
        file system's clock would not show in the identity (git treats its index the same way).
    """

    def __init__(self, path: str | os.PathLike, root: str | None, max_bytes: int):
        self._text = os.fsdecode(path)
        self._root, self._max_bytes = root, max_bytes
        refuse_url(self._text)
        with self._explained():
            self._resolved = self._text if root is None else _resolve_under(root, self._text)
            # Opening a device may act on it (a tape rewinds), so its kind is asked before, and again of what was
            # opened. Kernel files claim 0 bytes and some of them block: they are refused by their length.
            status = os.stat(self._resolved)
            self._check(status)
        self.identity = _identity(status)
        self.is_settled = os.name == "posix" and time.time_ns() - max(self.identity[-2:]) >= _SETTLED_NS

    def read(self) -> bytes:
        """Return the file's content, never empty.

        Raises
        ------
        RowError
            If it cannot be read, or is no longer what it was when it was checked.
        """
        with self._explained(), open(os.open(self._resolved, _OPEN_FLAGS), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            self._check(status)
            data = file.read(status.st_size + 1)
        if len(data) != status.st_size or _identity(status) != self.identity:
            raise RowError("the file changed while it was read")
        return data

    def _check(self, status: os.stat_result) -> None:
        _check_regular(status)
        _check_length(status.st_size, self._max_bytes)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RowError:
            raise
        except OSError as error:
            raise RowError(_explain(error, self._text, self._root)) from error
        except ValueError as error:
            raise RowError(f"not a valid path ({error})") from error


class DigestMemo:
    """Hashes that were computed before; a grid search asks for each many times. Safe with threads.

    Parameters
    ----------
    capacity : int
        Number of hashes remembered.
    """

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._digests: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = ForkSafeLock()

    def get(self, key: Hashable) -> bytes | None:
        """Return a hash if it is known."""
        with self._lock():
            return self._digests.get(key)

    def put(self, key: Hashable, digest: bytes) -> None:
        """Remember a hash; what was put first is forgotten first."""
        with self._lock():
            self._digests[key] = digest
            while len(self._digests) > self._capacity:
                self._digests.popitem(last=False)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_stream(stream, max_bytes: int) -> bytes:
    """Read a binary file object from its start, and put its position back.

    Parameters
    ----------
    stream : file object
        Open for reading in binary mode, and seekable; it is not closed.
    max_bytes : int
        Longer streams are refused.

    Returns
    -------
    data : bytes
        Never empty.
    """
    try:
        with _stream_lock():
            position = stream.tell()
            try:
                length = stream.seek(0, os.SEEK_END)
                _check_length(length, max_bytes)
                stream.seek(0)
                data = stream.read(length)
            finally:
                stream.seek(position)
    except RowError:
        raise
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise RowError(f"a file object that cannot be read ({error})") from error
    if not isinstance(data, bytes):
        raise RowError(f"a file object that gives {type(data).__name__}, not bytes; open it in mode 'rb'")
    return data


def check_data(data, max_bytes: int) -> bytes:
    """Refuse encoded images that are empty or too long.

    Parameters
    ----------
    data : bytes-like
        What should be an encoded image.
    max_bytes : int
        The limit.

    Returns
    -------
    data : bytes
        The same bytes.
    """
    data = bytes(data)
    _check_length(len(data), max_bytes)
    return data


def _check_regular(status: os.stat_result) -> None:
    for is_kind, kind in _KINDS:
        if is_kind(status.st_mode):
            raise RowError(f"{kind}, not a regular file")
    if not stat.S_ISREG(status.st_mode):
        raise RowError("not a regular file")


def _check_length(n_bytes: int, max_bytes: int) -> None:
    if n_bytes == 0:
        raise RowError("empty (0 bytes)")
    if n_bytes > max_bytes:
        raise RowError(f"too large: {n_bytes:,} bytes, where max_pixels allows {max_bytes:,}")


def _resolve_under(root: str, text: str) -> str:
    real_root = os.path.realpath(root)
    resolved = os.path.realpath(os.path.join(real_root, text))
    if resolved != real_root and not resolved.startswith(os.path.join(real_root, "")):
        raise RowError(f"leads outside of root={root!r}")
    return resolved


def _explain(error: OSError, text: str, root: str | None) -> str:
    path = os.path.join(root or "", text)
    if isinstance(error, FileNotFoundError):
        if os.path.islink(path):
            return f"a symbolic link to nothing ({os.readlink(path)!r})"
        hint = " ('~' is not expanded; use os.path.expanduser)" if text.startswith("~") else ""
        return f"no such file{'' if os.path.isabs(text) else f': {os.path.abspath(path)!r}'}{hint}"
    return f"cannot be read ({(error.strerror or str(error)).lower()})"
