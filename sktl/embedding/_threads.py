"""How many threads, and how they are kept from getting in each other's way.

Nothing global changes: OpenMP keeps the size of its teams per calling thread, so limiting it inside a thread of our own
limits that thread only, and ends with it. (``torch.set_num_threads`` would change the size for every thread started later.)
"""

import functools
import os

import joblib
import torch
from threadpoolctl import ThreadpoolController

# Beyond this, passes side by side cost more memory than they save in waiting; each then takes several cores.
_MAX_LANES = 8


def usable_cores():
    """Cores this process may use: its affinity, container and joblib limits, and what torch was told."""
    return max(1, min(joblib.cpu_count(), torch.get_num_threads()))


def cpu_lanes(cores):
    """Forward passes that run side by side on a CPU."""
    return min(cores, _MAX_LANES)


def start_lane(device):
    """Prepare a new thread of the pool: on a CPU, its torch operations take its share of the cores."""
    if device.type != "cpu":
        return
    cores = (
        torch.get_num_threads()
    )  # also makes torch initialise OpenMP in this thread, which would undo a limit set before
    _openmp().limit(limits=max(1, cores // cpu_lanes(usable_cores())))


@functools.cache
def _openmp():
    return ThreadpoolController().select(user_api="openmp")
