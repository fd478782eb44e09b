"""How many threads, and how they are kept from getting in each other's way.

Nothing global changes: OpenMP keeps the size of its teams per calling thread, so limiting it inside a thread of our own
limits that thread only, and ends with it. (``torch.set_num_threads`` would also change what threads started later get.)
"""

import functools
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


def limit_openmp(threads):
    """Limit the parallel regions of the calling thread; what is returned ends that as a context manager does."""
    torch.get_num_threads()  # makes torch initialise OpenMP in this thread, which would undo a limit set before
    return _openmp().limit(limits=threads)


@functools.cache
def _openmp():
    return ThreadpoolController().select(user_api="openmp")
