"""How many threads, and how they are kept from getting in each other's way.

Nothing global changes: OpenMP keeps the size of its teams per calling thread, so limiting it inside a thread of our own
limits that thread only, and ends with it. (``torch.set_num_threads`` would also change what threads started later get.)
"""

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple

import joblib
import torch
from threadpoolctl import ThreadpoolController

# Beyond this, passes side by side cost more memory than they save in waiting; each then takes several cores.
_MAX_LANES = 8


class CpuShare(NamedTuple):
    """How the cores of this process are divided.

    Attributes
    ----------
    cores : int
        All that may be used.

    lanes : int
        Forward passes that run side by side.

    threads : int
        Threads of each.
    """

    cores: int
    lanes: int
    threads: int


def cpu_share():
    """Divide the cores that this process may use: within its affinity, container, joblib's limits, and torch's.

    Returns
    -------
    share : CpuShare
        The same for every call of a process, so that results do not depend on the size of the call.
    """
    cores = max(1, min(joblib.cpu_count(), torch.get_num_threads()))
    lanes = min(cores, _MAX_LANES)
    return CpuShare(cores, lanes, cores // lanes)


class ThreadLimit:
    """Limit the parallel regions of the calling thread, in OpenMP and in MKL; as a context manager for a while.

    Parameters
    ----------
    threads : int
        Of each region.
    """

    def __init__(self, threads: int):
        torch.get_num_threads()  # makes torch initialise OpenMP in this thread, which would undo a limit set before
        self._limits = _openmp().limit(limits=threads)
        self._before = _set_mkl_threads(threads)

    def __enter__(self) -> "ThreadLimit":
        return self

    def __exit__(self, *exception: object) -> None:
        self._limits.restore_original_limits()
        _set_mkl_threads(self._before)


@functools.cache
def _openmp():
    return ThreadpoolController().select(user_api="openmp")


def _set_mkl_threads(threads: int) -> int:
    """Set MKL's thread count for the calling thread, over all other settings; return the old one, 0 if none."""
    setter = _mkl_setter()
    return 0 if setter is None else setter(threads)


@functools.cache
def _mkl_setter():
    """Find the function in torch, which brings its own MKL where it has one; threadpoolctl does not see it there."""
    for name in ("libtorch_cpu.so", "torch_cpu.dll", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            return getattr(ctypes.CDLL(str(path)), "MKL_Set_Num_Threads_Local", None)
    return None
