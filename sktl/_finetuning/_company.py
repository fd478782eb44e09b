"""Telling the user when several fits train on one GPU."""

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sktl.exceptions import DeviceWarning

_told = False


@contextmanager
def warned_of_company(device: torch.device) -> Iterator[None]:
    """Warn, once per process, if another fit trains on the same GPU when the block begins.

    Fits tell each other by a lock on a file per device, which the system takes back from a process that is killed.
    Where there are no such locks nothing is told.

    Parameters
    ----------
    device : torch.device
        Where the block trains.
    """
    if not _is_shared(device):
        yield
        return
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = Path(tempfile.gettempdir()) / f"sktl-{os.getuid()}-{device.type}-{device.index or 0}.lock"
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _tell(device)
        yield


def _is_shared(device: torch.device) -> bool:
    """Tell whether fits on a device have to share its memory and wait for each other."""
    return device.type == "cuda"


def _tell(device: torch.device) -> None:
    global _told
    if not _told:
        _told = True
        warnings.warn(
            f"Another fit is training on {device} at the same time. Fits that share a GPU share its memory, and are "
            "hardly quicker side by side: in a search set n_jobs=1, or give each worker a GPU of its own by the "
            "environment variable CUDA_VISIBLE_DEVICES or by device='cuda:1'.",
            DeviceWarning,
            stacklevel=2,
        )
