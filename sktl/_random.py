"""Private randomness: the same seed gives the same numbers, and nobody else's generator moves."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ONE_AT_A_TIME = threading.RLock()  # all threads draw from the same default generators


@contextmanager
def private_torch_rng(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Run a block on torch's default generators, seeded here and put back afterwards.

    For code that offers no ``generator=`` argument (weight initialisation, dropout). Threads wait for each other here,
    so that what is drawn does not hang on who else draws: training side by side takes processes.

    Parameters
    ----------
    seed : int
        Seed of the generators inside the block.
    device : torch.device, default=None
        A CUDA device whose generator is seeded and restored too.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for cuda_device in devices:
            with torch.cuda.device(cuda_device):
                torch.cuda.manual_seed(seed)
        yield
