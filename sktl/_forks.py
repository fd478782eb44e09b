"""What a forked child starts anew: a lock that a thread holds in the parent would never open in a child without it."""

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol
from weakref import WeakSet


class StartsAnew(Protocol):
    """Holds locks, or what belongs to threads."""

    def start_anew(self) -> None:
        """Give up, in a forked child, what threads of the parent may hold."""


def follow_forks(holder: StartsAnew) -> None:
    """Have an object start anew in each forked child, as long as it lives.

    Parameters
    ----------
    holder : object
        Has a method ``start_anew()``; it is referred to weakly.
    """
    _holders.add(holder)


class ForkSafeLock:
    """A lock between threads that a forked child finds open, whoever holds it in the parent.

    Parameters
    ----------
    make : callable, default=threading.Lock
        Makes the lock itself.

    Examples
    --------
    >>> from sktl._forks import ForkSafeLock
    >>> lock = ForkSafeLock()
    >>> with lock():
    ...     print("one at a time")
    one at a time
    """

    def __init__(self, make: Callable[[], AbstractContextManager] = threading.Lock):
        self._make = make
        self.start_anew()
        follow_forks(self)

    def __call__(self) -> AbstractContextManager:
        """Return the lock of this process; who entered it leaves the same one, even if the block forks."""
        return self._lock

    def start_anew(self) -> None:
        """Take a new lock; the threads that wait for the old one are not there."""
        self._lock = self._make()


def _start_all_anew() -> None:
    for holder in list(_holders):
        holder.start_anew()


_holders: WeakSet[StartsAnew] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_all_anew)
