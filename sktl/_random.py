"""Private randomness: the same seed gives the same numbers, and nobody else's generator moves."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec
from types import ModuleType

import numpy as np
import torch

from sktl._forks import ForkSafeLock

_ONE_AT_A_TIME = ForkSafeLock(threading.RLock)  # all threads draw from the same default generators


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
    with _ONE_AT_A_TIME(), torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for cuda_device in devices:
            with torch.cuda.device(cuda_device):
                torch.cuda.manual_seed(seed)
        yield


class OwnGenerators:
    """A pair of generators that stand for those of the modules ``random`` and ``numpy.random``."""

    def __init__(self):
        self.random = random.Random()
        self.numpy = np.random.RandomState()

    def seed(self, seed: int) -> None:
        """Start both anew."""
        self.random.seed(seed)
        self.numpy.seed(seed)


def with_own_generators(module: ModuleType, generators: OwnGenerators) -> ModuleType:
    """Return a copy of a module that draws from generators of one's own, where it draws from the global ones.

    For libraries whose functions take no generator. The copy is known to nobody else, and the module stays as it is.

    Parameters
    ----------
    module : module
        Uses ``random.<function>`` or ``np.random.<function>``.
    generators : OwnGenerators
        What the copy uses instead.
    """
    copy = module_from_spec(module.__spec__)
    module.__spec__.loader.exec_module(copy)
    copy.random = generators.random
    copy.np = _NumpyWithGenerator(generators.numpy)
    return copy


class _NumpyWithGenerator:
    def __init__(self, generator: np.random.RandomState):
        self.random = generator

    def __getattr__(self, name: str):
        return getattr(np, name)
