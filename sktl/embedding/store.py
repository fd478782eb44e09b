"""Stores of embedding rows, keyed by namespace (how a row was computed) and digest (of what)."""

import threading
from collections import OrderedDict

import numpy as np

DEFAULT_MAX_BYTES = 512 * 2**20
# What a key, the array object and the dictionary entry take beside the numbers; keeps the bound honest for short rows.
_OVERHEAD = 300


class MemoryStore:
    """Rows kept in this process, the least recently used dropped first.

    Parameters
    ----------
    max_bytes : int, default=512 MiB
        Bound on the memory that the rows take.
    """

    def __init__(self, max_bytes=DEFAULT_MAX_BYTES):
        self.max_bytes = max_bytes
        self._rows = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

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
        found = {}
        with self._lock:
            for digest in digests:
                row = self._rows.get((namespace, digest))
                if row is not None:
                    self._rows.move_to_end((namespace, digest))
                    found[digest] = row
        return found

    def put_many(self, namespace, rows):
        """Store rows.

        Parameters
        ----------
        namespace : str
            How the rows were computed.

        rows : dict of bytes to ndarray of shape (width,)
            Digest and embedding of each.
        """
        frozen = {digest: _frozen(row) for digest, row in rows.items()}
        with self._lock:
            for digest, row in frozen.items():
                self._drop((namespace, digest))
                self._rows[namespace, digest] = row
                self._bytes += row.nbytes + _OVERHEAD
            while self._bytes > self.max_bytes and self._rows:
                self._drop(next(iter(self._rows)))

    def clear(self):
        """Forget all rows."""
        with self._lock:
            self._rows.clear()
            self._bytes = 0

    def __len__(self):
        return len(self._rows)

    def _drop(self, key):
        row = self._rows.pop(key, None)
        if row is not None:
            self._bytes -= row.nbytes + _OVERHEAD


_DEFAULT = MemoryStore()


def default_store():
    """The in-process store that all estimators of the process share.

    Returns
    -------
    store : MemoryStore
        Bounded by 512 MiB.
    """
    return _DEFAULT


def _frozen(row):
    row = np.array(row, dtype=np.float32)  # a copy: a view would keep the whole result of a call alive
    row.flags.writeable = False
    return row
