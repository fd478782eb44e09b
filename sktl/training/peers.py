"""Processes that train one network together: each takes a part of every batch, and all take the same step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import nn

from sktl.exceptions import StrategyError


@dataclass(frozen=True)
class Peers:
    """The processes that train together, as one of them sees them; by default it is alone.

    Attributes
    ----------
    rank : int
        This process, counted from 0.
    size : int
        How many there are.
    device : torch.device or str
        Where they exchange tensors.
    add_up : callable
        Returns the sum of a tensor over all of them.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | str = "cpu"
    add_up: Callable[[torch.Tensor], torch.Tensor] = torch.clone

    def agree(self, number: int) -> int:
        """Return the first process's number, in all of them."""
        mine = torch.tensor(number if self.rank == 0 else 0, dtype=torch.int64, device=self.device)
        return int(self.add_up(mine))

    def check_rows(self, n_rows: int) -> None:
        """Make sure that all processes train on equally many rows: otherwise they would wait for each other forever.

        Raises
        ------
        ValueError
            In all of them, if they do not.
        """
        total, squares = self.add_up(torch.tensor([n_rows, n_rows**2], dtype=torch.int64, device=self.device)).tolist()
        if self.size > 1 and self.size * squares != total**2:
            raise ValueError(
                f"The processes that train together must be given the same rows; this one has {n_rows}, and the mean "
                f"is {total / self.size:g}."
            )

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean over all processes."""
        return value if self.size == 1 else self.add_up(value) / self.size

    def start_alike(self, module: nn.Module) -> None:
        """Give a network the first process's weights.

        Raises
        ------
        StrategyError
            If batch normalisation follows the data: each process sees others.
        """
        if self.size == 1:
            return
        module.train()
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training for part in module.modules()):
            raise StrategyError(
                "Batch normalisation that follows the data cannot be trained by several processes: each would see the "
                "statistics of its own rows. Choose a strategy that keeps them, or train in one process."
            )
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.copy_(self.add_up(tensor if self.rank == 0 else torch.zeros_like(tensor)))

    def combine(self, module: nn.Module, loss: torch.Tensor, n_rows: int) -> torch.Tensor:
        """Turn gradients of the mean over this process's rows into those of the mean over all rows.

        Parameters
        ----------
        module : nn.Module
            Its gradients are changed in place.
        loss : tensor
            Mean over this process's rows.
        n_rows : int
            How many these are.

        Returns
        -------
        loss : tensor
            Mean over all rows.
        """
        if self.size == 1:
            return loss
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        # One exchange for all; the number of rows at its end is what the sum is divided by.
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss.view(1), loss.new_ones(1)])
        flat = self.add_up(flat * n_rows)
        flat = flat / flat[-1]
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients] + [2])[:-1], strict=True):
            gradient.copy_(mean.view_as(gradient))
        return flat[-2]


_CURRENT: ContextVar[Peers] = ContextVar("peers", default=Peers())  # noqa: B039 -- it is frozen


def current_peers() -> Peers:
    """Return the processes that train together now."""
    return _CURRENT.get()


@contextmanager
def training_with(peers: Peers) -> Iterator[None]:
    """Let what is trained in a block be trained together."""
    token = _CURRENT.set(peers)
    try:
        yield
    finally:
        _CURRENT.reset(token)
