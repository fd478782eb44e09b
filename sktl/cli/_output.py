"""What the commands leave behind: whole files, or none, and the next command to type."""

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile

from sktl._writing import replacing


def make_writable(folder: Path) -> None:
    """Make a folder, and make sure that files can be written to it.

    Parameters
    ----------
    folder : Path
        May exist.

    Raises
    ------
    OSError
        If it cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let a function write a file beside its place, and move it there when it is complete.

    Parameters
    ----------
    path : Path
        The file; its folder is made.
    write : callable
        Takes the path to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        write(unfinished)


def command_line(*words: object) -> str:
    """Return a command of sktl as it can be typed here, whether or not sktl is on the PATH.

    Parameters
    ----------
    *words : object
        The words after the program's name.

    Returns
    -------
    line : str
        Quoted for a shell.
    """
    return shlex.join([*_program(), *map(str, words)])


def _program() -> list[str]:
    started = sys.argv[0]
    if os.path.basename(started) == "__main__.py":
        return [sys.executable, "-m", "sktl"]
    found = shutil.which("sktl")
    if os.path.basename(started) == "sktl" and (found is None or not os.path.samefile(found, started)):
        return [started]
    return ["sktl"]
