"""Stores of embedding rows, keyed by namespace (how a row was computed) and digest (of what)."""

import threading
from collections import OrderedDict

import numpy as np

from sktl._forks import follow_forks

DEFAULT_MAX_BYTES = 512 * 2**20
# What a key, the array object and the dictionary entry take beside the numbers; keeps the bound honest for short rows.
_OVERHEAD = 300


class Store:
    """What the engine asks of a place that keeps rows.

    A store never fails: where it cannot read or write, it warns and behaves as if it were empty.
    """

    def get_many(self, namespace, digests):
        """Rows that are stored under the given digests.

        Parameters
        ----------
        namespace : str
            How the rows were computed.

        digests : list of bytes
            What they were computed from.

        Returns
        -------
        rows : dict of bytes to ndarray of shape (width,)
            Read-only float32 rows; digests without one are absent.
        """
        raise NotImplementedError

    def put_many(self, namespace, rows):
        """Store rows.

        Parameters
        ----------
        namespace : str
            How the rows were computed.

        rows : dict of bytes to ndarray of shape (width,)
            Digest and embedding of each.
        """
        raise NotImplementedError

    def lacking(self, namespace, digests):
        """Tell which rows are not stored.

        Parameters
        ----------
        namespace : str
            How the rows were computed.

        digests : list of bytes
            What they were computed from.

        Returns
        -------
        lacking : list of bytes
            Those of the digests that ``get_many`` would not find; empty where nothing can be stored.
        """
        found = self.get_many(namespace, digests)
        return [digest for digest in digests if digest not in found]

    def claim(self, namespace, digests):
        """Announce that this process, or this thread of it, is about to compute rows.

        Parameters
        ----------
        namespace : str
            How the rows will be computed.

        digests : list of bytes
            What they will be computed from.

        Returns
        -------
        taken : set of bytes
            Digests that somebody else is computing, or has just stored: they are not claimed.
        """
        return set()

    def release(self, namespace, digests):
        """Give up claims on rows that will not be stored.

        Parameters
        ----------
        namespace : str
            How the rows would have been computed.

        digests : list of bytes
            What they would have been computed from.
        """

    def flush(self):
        """Write what is held back; called at the end of each call of the engine."""


class MemoryStore(Store):
    """Rows kept in this process, the least recently used dropped first.

    Clones of an estimator share the store, and a pickle of it is empty.

    Parameters
    ----------
    max_bytes : int, default=512 MiB
        Bound on the memory that the rows take.
    """

    def __init__(self, max_bytes=DEFAULT_MAX_BYTES):
        self.max_bytes = max_bytes
        self._claims = {}
        self._rows = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        follow_forks(self)

    def get_many(self, namespace, digests):
        """Look rows up; see :meth:`Store.get_many`."""
        found = {}
        with self._lock:
            for digest in digests:
                row = self._rows.get((namespace, digest))
                if row is not None:
                    self._rows.move_to_end((namespace, digest))
                    found[digest] = row
        return found

    def put_many(self, namespace, rows):
        """Keep copies of rows; see :meth:`Store.put_many`."""
        frozen = {digest: _frozen(row) for digest, row in rows.items()}
        with self._lock:
            for digest, row in frozen.items():
                self._drop((namespace, digest))
                self._claims.pop((namespace, digest), None)
                self._rows[namespace, digest] = row
                self._bytes += row.nbytes + _OVERHEAD
            self._evict()

    def claim(self, namespace, digests):
        """Claim rows for this thread; see :meth:`Store.claim`."""
        me, taken = threading.get_ident(), set()
        with self._lock:
            for digest in digests:
                key = (namespace, digest)
                if key in self._rows or self._claims.setdefault(key, me) != me:
                    taken.add(digest)
        return taken

    def release(self, namespace, digests):
        """Give claims up; see :meth:`Store.release`."""
        me = threading.get_ident()
        with self._lock:
            for digest in digests:
                if self._claims.get((namespace, digest)) == me:
                    del self._claims[namespace, digest]

    def resize(self, max_bytes):
        """Change the bound.

        Parameters
        ----------
        max_bytes : int
            Rows beyond it are dropped at once.
        """
        with self._lock:
            self.max_bytes = max_bytes
            self._evict()

    def start_anew(self):
        """Make a forked child independent of threads that only its parent has."""
        self._lock = threading.Lock()
        self._claims = {}

    def __getstate__(self):
        return {"max_bytes": self.max_bytes}

    def __setstate__(self, state):
        self.__init__(**state)

    def __deepcopy__(self, memo):
        return self  # the clones of an estimator are given the same place, as they are with a folder

    def clear(self):
        """Forget all rows."""
        with self._lock:
            self._rows.clear()
            self._bytes = 0

    def __len__(self):
        return len(self._rows)

    def _evict(self):
        while self._bytes > self.max_bytes and self._rows:
            self._drop(next(iter(self._rows)))

    def _drop(self, key):
        row = self._rows.pop(key, None)
        if row is not None:
            self._bytes -= row.nbytes + _OVERHEAD


class Shelf:
    """One namespace in a chain of stores, the fastest first.

    Parameters
    ----------
    stores : sequence of Store
        Asked in turn; what one of them has the others are given.

    namespace : str
        How the rows are computed.
    """

    def __init__(self, stores, namespace):
        self.stores = tuple(stores)
        self.namespace = namespace
        self._claimed = set()

    def get(self, digests):
        """Rows that any of the stores has, by digest."""
        known = {}
        for position, store in enumerate(self.stores):
            missing = [digest for digest in digests if digest not in known]
            found = store.get_many(self.namespace, missing) if missing else {}
            for earlier in self.stores[:position] if found else ():
                earlier.put_many(self.namespace, found)
            for later in self.stores[position + 1 :] if found else ():
                self._hand_on(found, later)
            known |= found
        return known

    def _hand_on(self, rows, store):
        """Give a slower store what it lacks: the process may have computed it before that store was named."""
        lacking = store.lacking(self.namespace, list(rows))
        if lacking:
            store.put_many(self.namespace, {digest: rows[digest] for digest in lacking})

    def put(self, rows):
        """Give rows to all stores."""
        for store in self.stores if rows else ():
            store.put_many(self.namespace, rows)
        self._claimed.difference_update(rows)

    def claim(self, digests):
        """Claim rows wherever other threads and processes look; those that others have are returned."""
        taken = set()
        for position, store in enumerate(self.stores):
            refused = store.claim(self.namespace, [digest for digest in digests if digest not in taken])
            for earlier in self.stores[:position] if refused else ():
                earlier.release(self.namespace, list(refused))
            taken |= refused
        self._claimed.update(digest for digest in digests if digest not in taken)
        return taken

    def close(self):
        """Give up what was claimed and not put, and have all written."""
        claimed, self._claimed = list(self._claimed), set()
        for store in self.stores:
            if claimed:
                store.release(self.namespace, claimed)
            store.flush()


_DEFAULT = MemoryStore()


def default_store(max_bytes=None):
    """The in-process store that all estimators of the process share.

    Parameters
    ----------
    max_bytes : int, default=None
        A new bound on the memory that the rows take, for all who share the store. It is 512 MiB at first; None leaves
        it as it is.

    Returns
    -------
    store : MemoryStore
        The same in all calls.
    """
    if max_bytes is not None:
        _DEFAULT.resize(max_bytes)
    return _DEFAULT


def _frozen(row):
    row = np.array(row, dtype=np.float32)  # a copy: a view would keep the whole result of a call alive
    row.flags.writeable = False
    return row
