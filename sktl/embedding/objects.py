"""Folders of objects that are written once: on a local disk, or in whatever store fsspec reaches."""

import contextlib
import os
import uuid
from pathlib import Path

import fsspec

from sktl.exceptions import MissingExtraError


class ObjectFolder:
    """Objects by name, each there as a whole or not at all.

    Parameters
    ----------
    url : str or path
        A local folder, or a URL that fsspec knows: ``"s3://bucket/prefix"``, ``"gs://..."``, ``"file:///..."``.

    Raises
    ------
    MissingExtraError
        If the package that fsspec needs for such URLs is not installed.

    ValueError
        If fsspec knows no such URLs.

    Notes
    -----
    A local object is written beside its place and renamed. Elsewhere it is put in one request, which object stores
    make visible when it is complete. Who reads should still check what the object holds: a store that does otherwise
    cannot be told from here.
    """

    def __init__(self, url):
        self.url = os.fspath(url)
        self._pid, self._opened = None, None
        _check_protocol(self.url)

    def __repr__(self):
        return f"{type(self).__name__}({self.url!r})"

    def __getstate__(self):
        return {"url": self.url}

    def __setstate__(self, state):
        self.__init__(**state)

    def sizes(self):
        """List the objects.

        Returns
        -------
        sizes : dict of str to int
            Bytes by name, sorted by name; hidden names are left out. Empty if there is no such folder.
        """
        filesystem, root = self._open()
        filesystem.invalidate_cache(root)
        try:
            entries = filesystem.ls(root, detail=True)
        except FileNotFoundError:
            return {}
        sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries if entry["type"] == "file"}
        return {name: sizes[name] for name in sorted(sizes) if name and not name.startswith(".")}

    def read(self, name):
        """Read an object.

        Parameters
        ----------
        name : str
            Which.

        Returns
        -------
        data : bytes
            All of it.
        """
        filesystem, root = self._open()
        return filesystem.cat_file(f"{root}/{name}")

    def read_ranges(self, ranges):
        """Read parts of objects, side by side where the store can.

        Parameters
        ----------
        ranges : list of (str, int, int)
            Name, start and end of each.

        Returns
        -------
        parts : list of bytes or Exception
            An exception where a part cannot be read.
        """
        if not ranges:
            return []
        filesystem, root = self._open()
        names, starts, ends = map(list, zip(*ranges, strict=True))
        return filesystem.cat_ranges([f"{root}/{name}" for name in names], starts, ends, on_error="return")

    def write(self, name, data):
        """Write an object, or replace it.

        Parameters
        ----------
        name : str
            Its name, without slashes.

        data : bytes
            What it holds.
        """
        filesystem, root = self._open()
        if "file" in _protocols(filesystem):
            _write_local(Path(root), name, data)
        else:
            filesystem.pipe_file(f"{root}/{name}", bytes(data))

    def _open(self):
        """Return the file system and the folder's path there; a forked child gets connections of its own."""
        if self._pid != os.getpid():
            is_url = "://" in self.url
            url = self.url if is_url else Path(os.path.abspath(os.path.expanduser(self.url))).as_uri()
            options = {"skip_instance_cache": True} if is_url and not url.startswith(("file:", "memory:")) else {}
            filesystem, root = fsspec.core.url_to_fs(url, **options)
            self._pid, self._opened = os.getpid(), (filesystem, root.rstrip("/"))
        return self._opened


def is_url(text):
    """Say whether a string is a URL and no path.

    Parameters
    ----------
    text : object
        Anything.

    Returns
    -------
    is_url : bool
        True for a string with ``://`` in it.
    """
    return isinstance(text, str) and "://" in text


def _check_protocol(url):
    if not is_url(url):
        return
    protocol = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise MissingExtraError(f"{url!r} needs a package that is not installed. {error}") from error
    except ValueError as error:
        raise ValueError(f"{url!r} is no URL that fsspec knows: {error}") from error


def _protocols(filesystem):
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else protocol


def _write_local(folder, name, data):
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{name}.{uuid.uuid4().hex}"
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
