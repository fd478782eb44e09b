"""Files that are written whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces the file when the block has succeeded.

    Until then, and for good if the block fails, an earlier file of that name stays as it is. Links are followed, and
    a file that is replaced keeps its permissions.

    Parameters
    ----------
    path : path-like
        The file to write or replace. Its folder must exist.

    Yields
    ------
    unfinished : Path
        Where to write. Nothing is there yet; the suffix is that of the file.

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
