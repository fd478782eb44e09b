"""Writing a file whole or not at all."""

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there when it is complete; an old file stays until then.

    Parameters
    ----------
    path : Path
        In a folder that exists.
    content : bytes
        All of it.

    Raises
    ------
    OSError
        If the folder is missing or cannot be written to, or the disk is full.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(unfinished, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
