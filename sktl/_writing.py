"""Files that are written whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a file beside the path to write to, which takes its place when the block has succeeded.

    What stood there stays until then, and for good if the block fails. A link stays a link to the file that is
    replaced, and that file's permissions stay.

    Parameters
    ----------
    path : path-like
        The file; its folder exists.

    Yields
    ------
    unfinished : Path
        Not there yet; of the same ending.

    Raises
    ------
    OSError
        If it cannot be written; names the path that was given.
    """
    place = Path(os.path.realpath(path))
    unfinished = place.with_name(f".{place.stem}-{secrets.token_hex(6)}{place.suffix}")
    try:
        yield unfinished
        _sync(unfinished)
        if place.exists():
            os.chmod(unfinished, place.stat().st_mode & 0o777)
        os.replace(unfinished, place)
    except OSError as error:
        if str(error.filename) != str(unfinished):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            unfinished.unlink()
    _sync_folder(place.parent)


def _sync(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a loss of power, on systems where a folder can be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
