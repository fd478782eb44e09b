"""Parts of a batch side by side: each on one core, so that the results do not depend on the number of cores."""

import copy
import math
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from sktl._random import private_torch_rng
from sktl.embedding import ThreadLimit, cpu_share
from sktl.strategies import Strategy
from sktl.training.lockstep import Meeting, PartOfBatch, Rehearsal

_T = TypeVar("_T")

# A part has to be worth a thread's while; numbers per batch from which on it is split into as many parts.
_PARTS_FROM_SIZE = ((8_000_000, 8), (2_000_000, 4), (0, 2))
_SIZE_OF_TOKEN = 1000  # a token takes about as much work as so many numbers of an image
_MIN_ROWS = 4
_MIN_SIZE_OF_SHARES = 1_000_000


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
        most_parts = _PARTS_FROM_SIZE[0][1]
        self.n = min(cpu_share().cores, most_parts)
        self._cores = threading.Semaphore(self.n)
        self._copies: dict[int, list[nn.Module]] = {}
        self._splittings: dict[tuple, Splitting] = {}
        self._pool = ThreadPoolExecutor(self.n, "sktl-training", ThreadLimit, (1,))
        # For what is to be begun at once in any case: all parts of a meeting.
        self._wide_pool = ThreadPoolExecutor(most_parts, "sktl-meeting", ThreadLimit, (1,))

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._wide_pool.shutdown(cancel_futures=True)

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
        free: queue.SimpleQueue[nn.Module] = queue.SimpleQueue()
        for copied in self._copies_of(network, limit):
            free.put(copied)
        pending: deque[Future[_T]] = deque()
        try:
            for item in items:
                if len(pending) >= limit:
                    yield pending.popleft().result()
                pending.append(self._pool.submit(_call, free, function, item))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            wait(pending)

    def map_parts(
        self,
        network: nn.Module,
        function: Callable[[nn.Module, slice], _T],
        parts: list[slice],
        splitting: "Splitting",
        at_once: int,
    ) -> Iterator[_T]:
        """Do the same with the parts of a batch, whose rows may depend on each other or on random numbers.

        Parameters
        ----------
        network, function
            See :meth:`map`.
        parts : list of slice
            Of the batch.
        splitting : Splitting
            Says what the parts depend on.
        at_once : int
            Bound on parts in work, where none waits for others.
        """
        seeds = torch.randint(2**62, (len(parts),)).tolist() if splitting.draws else [0] * len(parts)
        if splitting.meets:
            return self._map_meeting(network, function, parts, seeds)
        if not splitting.draws:
            return self.map(network, function, parts, at_once)

        def run(copied: nn.Module, number: int) -> _T:
            with PartOfBatch(number, seeds[number]):
                return function(copied, parts[number])

        return self.map(network, run, range(len(parts)), at_once)

    def _map_meeting(self, network: nn.Module, function, parts: list[slice], seeds: list[int]) -> Iterator[Any]:
        meeting = Meeting(len(parts), self._cores)

        def run(copied: nn.Module, number: int):
            with meeting.attended(), PartOfBatch(number, seeds[number], meeting) as part:
                result = function(copied, parts[number])
                part.end()
                return result

        running: list[Future] = []
        try:
            for number, copied in enumerate(self._copies_of(network, len(parts))):
                running.append(self._wide_pool.submit(run, copied, number))
            for future in running:
                yield future.result()
        except threading.BrokenBarrierError as error:
            raise meeting.failure or error from None
        finally:
            meeting.close()
            wait(running)

    def share_out(self, function: Callable[..., None], parameters: list[nn.Parameter], *columns: Sequence[Any]) -> None:
        """Call a function with some of the parameters at a time, and what belongs to them, in all threads.

        Parameters
        ----------
        function : callable
            Takes a list of parameters and one of each column; what it does to one does not depend on the others.
        parameters : list of nn.Parameter
            Few numbers in all stay in this thread.
        columns : sequence
            One item for each parameter.
        """
        if self.n == 1 or sum(map(torch.Tensor.numel, parameters)) < _MIN_SIZE_OF_SHARES:
            function(parameters, *columns)
            return
        largest_first = sorted(range(len(parameters)), key=lambda number: -parameters[number].numel())
        calls = []
        for share in (largest_first[start :: self.n] for start in range(self.n)):
            taken = ([column[number] for number in share] for column in (parameters, *columns))
            calls.append(self._wide_pool.submit(function, *taken))
        for call in wait(calls).done:
            call.result()

    def splitting_of(
        self, network: nn.Module, strategy: Strategy, forward: Callable[[nn.Module, int], Any]
    ) -> "Splitting":
        """Return what :func:`splitting_of` says, at once if the same is in training as in an earlier epoch."""
        trained = tuple(parameter.requires_grad for parameter in network.parameters())
        state = trained, tuple(module.training for module in network.modules())
        if state not in self._splittings:
            self._splittings[state] = splitting_of(network, strategy, forward)
        return self._splittings[state]

    def _copies_of(self, network: nn.Module, n: int) -> list[nn.Module]:
        copies = self._copies.setdefault(id(network), [])
        while len(copies) < n:
            copies.append(_copy(network, _is_no_counter if copies else _is_any))  # a step is to be counted once
        return copies[:n]


def _call(free: "queue.SimpleQueue[nn.Module]", function: Callable[[nn.Module, Any], _T], item: Any) -> _T:
    network = free.get()
    try:
        return function(network, item)
    finally:
        free.put(network)


def _is_any(name: str) -> bool:
    return True


def _is_no_counter(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def _copy(network: nn.Module, shares_buffer: Callable[[str], bool]) -> nn.Module:
    """Copy a network, but for its parameters and for buffers that are to be shared."""
    buffers = (buffer for name, buffer in network.named_buffers() if shares_buffer(name))
    return copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *buffers)})


@dataclass(frozen=True)
class Splitting:
    """How a training step may be made in parts that run side by side.

    Parameters
    ----------
    possible : bool
        False where the rows of a batch depend on each other in a way that is not known here.
    draws : bool, default=False
        Whether random numbers are drawn.
    meets : bool, default=False
        Whether layers compute statistics over the batch.
    """

    possible: bool
    draws: bool = False
    meets: bool = False


def splitting_of(network: nn.Module, strategy: Strategy, forward: Callable[[nn.Module, int], Any]) -> Splitting:
    """Find out how a training step may be split, by rehearsals with copies of the network.

    Parameters
    ----------
    network : Network
        In training mode.
    strategy : Strategy
        See :attr:`~sktl.strategies.Strategy.splits_penalty`.
    forward : callable
        Runs a copy of the network on so many rows of the batch, at most.
    """
    if type(strategy).penalty is not Strategy.penalty and not strategy.splits_penalty:
        return Splitting(False)
    trial = _copy(network, lambda name: False)
    learning = [module for module in trial.modules() if isinstance(module, _BatchNorm) and module.training]
    if any(module.momentum is None for module in learning):
        return Splitting(False)
    before = {name: (buffer, buffer._version, buffer.clone()) for name, buffer in _statistics_of(trial).items()}
    try:
        for module in learning:
            module.eval()  # one row has no statistics
        draws = _draws(trial, forward, nullcontext())
        known = not (draws and _draws(trial, forward, PartOfBatch()))
        for module in learning:
            module.train()
        known = known and _each_sees_all(learning, trial, forward)
    except (RuntimeError, MemoryError):  # of checkpointing, say; what else may be wrong the step itself will raise
        return Splitting(False)
    now = _statistics_of(trial)
    known = known and now.keys() == before.keys() and all(_is_as_it_was(now[name], *before[name]) for name in now)
    return Splitting(known, draws, bool(learning))


def _statistics_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer for name, buffer in network.named_buffers() if _is_no_counter(name)}


def _is_as_it_was(now: torch.Tensor, before: torch.Tensor, version: int, values: torch.Tensor) -> bool:
    """Say whether nobody wrote to a buffer, not even its old values, as an iteration that has converged would."""
    return now is before and now._version == version and torch.equal(now, values)


def _each_sees_all(learning: list[_BatchNorm], network: nn.Module, forward: Callable[[nn.Module, int], Any]) -> bool:
    """Say whether each layer that learns its statistics computes them once, over the whole batch."""
    if not learning:
        return True
    with Rehearsal() as rehearsal, private_torch_rng(0), torch.no_grad():
        forward(network, sys.maxsize)
    return rehearsal.calls == {id(layer.running_mean): 1 for layer in learning}


def _draws(network: nn.Module, forward: Callable[[nn.Module, int], Any], mode: AbstractContextManager) -> bool:
    """Say whether a step on one row draws from torch's default generator."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with private_torch_rng(0):
        before = torch.random.get_rng_state()
        # What checkpointing computes again in the backward pass would not know of the mode: without hooks it raises.
        with mode, disable_saved_tensors_hooks("Parts of a batch are at work."):
            output = forward(network, 1)
            if output.requires_grad:
                torch.autograd.grad(output.sum(), trained, allow_unused=True)
        return not torch.equal(torch.random.get_rng_state(), before)
