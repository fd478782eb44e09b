"""Batches of rows on their way through the decoding threads and the network."""

import threading
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import torch


class Item(NamedTuple):
    """A row to embed: where its embedding goes, and the key it is stored under."""

    index: int
    digest: bytes
    row: object


class BufferPool:
    """Input buffers of one shape, used again by later batches.

    Fresh memory of this size costs a page fault per 4 KiB, and a pinned buffer much more than that.

    Parameters
    ----------
    capacity : int
        Rows per buffer.

    pin : bool
        Whether to page-lock the buffers, so that copies to a CUDA device run beside computation.
    """

    def __init__(self, capacity, pin):
        self.capacity = capacity
        self.pin = pin
        self._free = []
        self._lock = threading.Lock()

    def take(self, like):
        """A buffer for rows of the shape and dtype of `like`."""
        shape = (self.capacity, *like.shape)
        with self._lock:
            for position, buffer in enumerate(self._free):
                if buffer.shape == shape and buffer.dtype == _torch_dtype(like):
                    return self._free.pop(position)
        return torch.empty(shape, dtype=_torch_dtype(like), pin_memory=self.pin)

    def give_back(self, buffer):
        with self._lock:
            self._free.append(buffer)


class Batch:
    """Rows that pass through the network together.

    Several threads fill it; the one that finishes the last group learns so, and runs it.

    Parameters
    ----------
    items : list of Item
        At most ``pool.capacity`` rows.

    group_size : int
        Rows per decoding task.

    pool : BufferPool
        Where the input buffer comes from.

    Attributes
    ----------
    groups : list of range
        The slots of each decoding task.

    done : Future
        Of what the network gives.

    failed : set of int
        Slots whose row cannot be embedded.
    """

    def __init__(self, items, group_size, pool):
        self.items = items
        self.groups = list(chunks(range(len(items)), group_size))
        self.done = Future()
        self.failed = set()
        self._pool = pool
        self._lock = threading.Lock()
        self._groups_left = len(self.groups)
        self._buffer = self._array = None

    def fill(self, slot, array):
        """Copy one row's array into its slot."""
        if self._buffer is None:
            self._allocate(array)
        if array.shape != self._array.shape[1:]:
            raise ValueError(f"All rows must have one shape, got {array.shape} after {self._array.shape[1:]}.")
        self._array[slot] = array

    def finish_group(self):
        """Count one decoded group; True for the last of the batch."""
        with self._lock:
            self._groups_left -= 1
            return self._groups_left == 0

    def set_exception(self, error):
        """Fail as a whole; the first error counts."""
        with self._lock:
            if not self.done.done():
                self.done.set_exception(error)

    def good_slots(self):
        """Slots that hold a row, in order."""
        return [slot for slot in range(len(self.items)) if slot not in self.failed]

    def padded(self):
        """The whole input buffer, zeros where no row is."""
        for slot in self.failed:
            self._array[slot] = 0
        self._array[len(self.items) :] = 0
        return self._buffer

    def release(self):
        """Return the buffer, and forget the rows with their bytes."""
        if self._buffer is not None:
            self._pool.give_back(self._buffer)
        self._buffer = self._array = None
        self.items = []

    def _allocate(self, like):
        with self._lock:
            if self._buffer is None:
                buffer = self._pool.take(like)
                self._array = buffer.numpy()
                self._buffer = buffer


def chunks(sequence, size):
    """Yield consecutive slices of at most `size` items."""
    for start in range(0, len(sequence), size):
        yield sequence[start : start + size]


def _torch_dtype(array):
    return {np.uint8: torch.uint8, np.int32: torch.int32}.get(array.dtype.type, torch.float32)
