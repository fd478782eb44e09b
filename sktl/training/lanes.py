"""Parts of a batch side by side: each on one core, so that the results do not depend on the number of cores."""

import copy
import math
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from torch import nn

from sktl._random import private_torch_rng
from sktl.embedding import cpu_share, limit_openmp
from sktl.strategies import Strategy

_T = TypeVar("_T")

# A part has to be worth a thread's while; numbers per batch from which on it is split into as many parts.
_PARTS_FROM_SIZE = ((8_000_000, 8), (2_000_000, 4), (0, 2))
_SIZE_OF_TOKEN = 1000  # a token takes about as much work as so many numbers of an image
_MIN_ROWS = 4


def n_parts_for(shape: Sequence[int], is_tokens: bool = False) -> int:
    """Return into how many parts a batch is split for the lanes: a matter of its shape, not of the machine.

    Parameters
    ----------
    shape : sequence of int
        Of the batch: rows first.
    is_tokens : bool, default=False
        Whether the batch holds texts, and not images.
    """
    size = math.prod(shape) * (_SIZE_OF_TOKEN if is_tokens else 1)
    n_parts = next(n_parts for threshold, n_parts in _PARTS_FROM_SIZE if size >= threshold)
    return max(1, min(n_parts, shape[0] // _MIN_ROWS))


class Lanes:
    """Threads of one core each, that run copies of a network sharing its weights.

    What a kernel adds up in which order depends on its number of threads. Here that number is always one, and the parts
    of a batch are the same whatever the machine: only how many of them run at a time differs. To be used as a context
    manager, which ends the threads.

    Attributes
    ----------
    n : int
        How many parts run at a time, at most.
    """

    def __init__(self) -> None:
        self.n = min(cpu_share().cores, _PARTS_FROM_SIZE[0][1])
        self._copies: dict[int, queue.SimpleQueue[nn.Module]] = {}
        self._pool = ThreadPoolExecutor(self.n, "sktl-training", limit_openmp, (1,))

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def forget(self) -> None:
        """Let go of the copies; to be called when modules may have changed in anything but their weights."""
        self._copies.clear()

    def map(
        self,
        network: nn.Module,
        function: Callable[[nn.Module, Any], _T],
        items: Iterable[Any],
        at_once: int | None = None,
    ) -> Iterator[_T]:
        """Call a function with a copy of the network and each item; yield the results in the order of the items.

        Parameters
        ----------
        network : nn.Module
            Its copies share its parameters and buffers.
        function : callable
            Takes a copy and an item.
        items : iterable
            Drawn in the calling thread, as lanes become free.
        at_once : int, default=None
            Bound on items in work.
        """
        limit = self.n if at_once is None else min(self.n, at_once)
        copies = self._copies_of(network)
        pending: deque[Future[_T]] = deque()
        try:
            for item in items:
                if len(pending) >= limit:
                    yield pending.popleft().result()
                pending.append(self._pool.submit(_call, copies, function, item))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            wait(pending)

    def _copies_of(self, network: nn.Module) -> "queue.SimpleQueue[nn.Module]":
        if id(network) not in self._copies:
            shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
            copies: queue.SimpleQueue[nn.Module] = queue.SimpleQueue()
            for _ in range(self.n):
                copies.put(copy.deepcopy(network, dict(shared)))
            self._copies[id(network)] = copies
        return self._copies[id(network)]


def _call(copies: "queue.SimpleQueue[nn.Module]", function: Callable[[nn.Module, Any], _T], item: Any) -> _T:
    network = copies.get()
    try:
        return function(network, item)
    finally:
        copies.put(network)


def add_gradients(parameters: list[nn.Parameter], gradients: tuple[torch.Tensor | None, ...]) -> None:
    """Add gradients to those that parameters have, in memory of their own, laid out as optimizers expect it.

    Parameters
    ----------
    parameters : list of nn.Parameter
        What to add to the ``grad`` of.
    gradients : tuple of tensor or None
        As ``torch.autograd.grad`` gives them: two may share memory, and a kernel's gradient may have its channels last.
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        else:
            parameter.grad.add_(gradient)


def parts_are_independent(network: nn.Module, strategy: Strategy, forward_one: Callable[[], Any]) -> bool:
    """Say whether a training step gives the same in parts that run side by side.

    It does not where a layer computes statistics over the batch, where random numbers are drawn (dropout, stochastic
    depth), and where the strategy does not promise it for its penalty.

    Parameters
    ----------
    network : Network
        In training mode.
    strategy : Strategy
        See :attr:`~sktl.strategies.Strategy.splits_penalty`.
    forward_one : callable
        Runs the network on one row.
    """
    if type(strategy).penalty is not Strategy.penalty and not strategy.splits_penalty:
        return False
    if any(isinstance(each, nn.modules.batchnorm._BatchNorm) and each.training for each in network.modules()):
        return False
    with private_torch_rng(0), torch.no_grad():
        before = torch.random.get_rng_state()
        forward_one()
        return torch.equal(torch.random.get_rng_state(), before)
