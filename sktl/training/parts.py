"""Batches in parts: gradients are added up over as many parts as memory needs."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from sktl.embedding.runtime import is_out_of_memory


class Parts:
    """Into how many parts a batch is split; twice as many from the moment on when memory runs out.

    Parameters
    ----------
    n : int
        Parts to begin with.
    device : torch.device
        Whose random numbers are drawn again when a batch is begun again.
    """

    def __init__(self, n: int, device: torch.device):
        self.n = n
        self.device = device

    def run(self, n_rows: int, attempt: Callable[[list[slice]], Any], at_least: Callable[[], int] = lambda: 1) -> Any:
        """Run a batch, again from its beginning in smaller parts if it does not fit into memory.

        Parameters
        ----------
        n_rows : int
            Rows of the batch.
        attempt : callable
            Takes the parts as slices of the batch; does not change anything that a second attempt does not reset.
        at_least : callable
            Gives a bound on the number of parts, for each attempt.

        Returns
        -------
        result : object
            What the last attempt returned.
        """
        state = random_state(self.device)
        while True:
            try:
                return attempt(_slices(n_rows, min(max(self.n, at_least()), n_rows)))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.n >= n_rows:
                    raise
            self.n *= 2
            set_random_state(state, self.device)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Return the state of torch's default generators: the CPU's, and a CUDA device's."""
    states = [torch.random.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    """Put the generators back to what :func:`random_state` returned; seed a CUDA device's by a state without one."""
    torch.random.set_rng_state(states[0])
    if device.type == "cuda":
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], device)
        else:
            _seed_by(states[0], device)


def _seed_by(state: torch.Tensor, device: torch.device) -> None:
    """Seed a CUDA device's generator with a number that a generator of the CPU in that state draws."""
    generator = torch.Generator()
    generator.set_state(state)
    with torch.cuda.device(device):
        torch.cuda.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))


def _slices(n_rows: int, n_parts: int) -> list[slice]:
    bounds = [round(index * n_rows / n_parts) for index in range(n_parts + 1)]
    return [slice(first, last) for first, last in pairwise(bounds)]
