"""A store of embedding rows for many machines: shards in an object store, written once and never changed."""

import os
import threading
import time
import warnings
from collections import OrderedDict, defaultdict

import numpy as np

from sktl.embedding._catalog import Catalog, pack, row_checksum, row_key
from sktl.embedding.objects import ObjectFolder
from sktl.embedding.store import Store
from sktl.exceptions import CacheWarning

LAYOUT_VERSION = 1
_RETRY_SECONDS = 60
# A shard of which this many rows are wanted at once is read as a whole: its others will be wanted next.
_WORTH_THE_WHOLE = 4
_MAX_HELD_BYTES = 64 * 2**20


class ObjectStore(Store):
    """Rows kept under a URL, written by any number of processes on any number of machines.

    Rows are gathered and written as shards, each under a name made of its content. Shards are only ever added, so that
    no process waits for another, and none can spoil what another wrote; a row that two compute at the same time is
    there twice. A process that is killed loses the rows it has gathered, and they are computed again. Each row carries
    a checksum, and whatever does not fit its own is treated as if it were not there.

    A store that cannot be reached costs a warning, and is left alone for a minute; the work goes on.

    Parameters
    ----------
    url : str
        What fsspec knows: ``"s3://bucket/prefix"``, ``"gs://..."``, ``"file:///..."``; a path is a local folder.

    shard_bytes : int, default=1 MiB
        Rows are gathered in memory and written as one shard when they take this many bytes.

    flush_seconds : float, default=30
        Rows are also written when the oldest of them has waited this long, and at the end of each call.

    refresh_seconds : float, default=30
        How long to wait before looking again for rows that others have written.

    Notes
    -----
    There is no bound on the size; to make room, remove shards or the folder. A shard is a safetensors file.
    """

    def __init__(self, url, shard_bytes=2**20, flush_seconds=30, refresh_seconds=30):
        self.url = os.fspath(url)
        self.shard_bytes = shard_bytes
        self.flush_seconds = flush_seconds
        self.refresh_seconds = refresh_seconds
        ObjectFolder(self.url)  # refuses a URL that nothing here can read
        self._reset()

    def __repr__(self):
        return f"{type(self).__name__}({self.url!r})"

    def __getstate__(self):
        return {name: vars(self)[name] for name in ("url", "shard_bytes", "flush_seconds", "refresh_seconds")}

    def __setstate__(self, state):
        self.__init__(**state)

    def get_many(self, namespace, digests):
        """Look rows up; see :meth:`Store.get_many`."""
        keys = {row_key(namespace, digest): digest for digest in digests}
        found = self._try(lambda: self._get(namespace, list(keys)), {}) if keys else {}
        return {keys[key]: _as_row(value) for key, value in found.items()}

    def lacking(self, namespace, digests):
        """Tell which rows are in no shard and not gathered, as far as is known here; see :meth:`Store.lacking`."""
        keys = {row_key(namespace, digest): digest for digest in digests}
        lacking = self._try(lambda: set(keys).difference(*self._find(namespace, list(keys))), ()) if keys else ()
        return [keys[key] for key in lacking]

    def put_many(self, namespace, rows):
        """Gather rows, and write them when there are enough; see :meth:`Store.put_many`."""
        values = {
            row_key(namespace, digest): np.ascontiguousarray(row, dtype="<f4").tobytes() for digest, row in rows.items()
        }
        if values:
            self._try(lambda: self._put(namespace, values), None)

    def flush(self):
        """Write what is gathered; see :meth:`Store.flush`."""
        self._try(self._write_all, None)

    # With the lock held ---------------------------------------------------------------------------------------------

    def _get(self, namespace, keys):
        found, places = self._find(namespace, keys)
        return found | self._fetch(namespace, self._catalog(namespace), places)

    def _find(self, namespace, keys):
        """Return the rows that are gathered, and where others may be."""
        gathered = self._gathered.get(namespace, {})
        found = {key: gathered[key] for key in keys if key in gathered}
        catalog = self._catalog(namespace)
        missing = [key for key in keys if key not in found]
        places = catalog.find(missing) if missing else {}
        if len(places) < len(missing) and self._is_due(namespace):
            catalog.refresh()
            self._refreshed[namespace] = time.monotonic()
            places = catalog.find(missing)
        if catalog.unreadable:
            name, reason = next(iter(catalog.unreadable.items()))
            self._warn(f"has a shard that is damaged, {name!r}: {reason}; its rows are computed again")
        return found, places

    def _fetch(self, namespace, catalog, places):
        """Read rows from where they may be; what does not fit its checksum is left out."""
        wanted = defaultdict(list)
        for candidates in places.values():
            for place in candidates:
                wanted[place.shard].append(place.position)
        sources = self._sources(namespace, catalog, wanted)
        found = {}
        for key, candidates in places.items():
            for place in candidates:
                value = sources.get((place.shard, place.position))
                if value is not None and row_checksum(key, value) == place.checksum:
                    found[key] = value
        return found

    def _sources(self, namespace, catalog, wanted):
        """Read what is wanted of each shard: all of it, or single rows; values by shard and position."""
        values, requests = {}, []
        for number, positions in wanted.items():
            shard = catalog.shards[number]
            held = self._held.get((namespace, shard.name))
            if held is not None:
                self._held.move_to_end((namespace, shard.name))
                values |= _cut(held, shard, number, 0, positions)
            elif len(positions) >= _WORTH_THE_WHOLE:
                requests.append((number, 0, shard.n_rows - 1))
            else:
                requests += [(number, position, position) for position in positions]
        spans = [catalog.shards[number].span(first, last) for number, first, last in requests]
        for (number, first, last), data in zip(requests, catalog.folder.read_ranges(spans), strict=True):
            shard = catalog.shards[number]
            if isinstance(data, FileNotFoundError):
                continue  # removed since it was listed: its rows are computed again
            if isinstance(data, Exception):
                raise data
            values |= _cut(data, shard, number, first, [p for p in wanted[number] if first <= p <= last])
            if last - first + 1 == shard.n_rows:
                self._hold((namespace, shard.name), data)
        return values

    def _hold(self, key, data):
        """Keep a shard for the next calls, and let go of those that were not used for longest."""
        self._held[key] = data
        while sum(map(len, self._held.values())) > _MAX_HELD_BYTES:
            self._held.popitem(last=False)

    def _put(self, namespace, values):
        gathered = self._gathered.setdefault(namespace, {})
        if not gathered:
            self._since[namespace] = time.monotonic()
        gathered.update(values)
        n_bytes = sum(map(len, gathered.values()))
        if n_bytes >= self.shard_bytes or time.monotonic() - self._since[namespace] >= self.flush_seconds:
            self._write(namespace)

    def _write_all(self):
        for namespace in list(self._gathered):
            self._write(namespace)

    def _write(self, namespace):
        rows = self._gathered.pop(namespace)  # given up even if this fails: they can be computed again
        if rows:
            self._catalog(namespace).folder.write(*pack(rows))
            self._refreshed[namespace] = float("-inf")  # find there what is gathered no more

    def _catalog(self, namespace):
        if namespace not in self._catalogs:
            folder = ObjectFolder(f"{self.url.rstrip('/')}/sktl-embeddings-v{LAYOUT_VERSION}/{namespace}")
            self._catalogs[namespace] = Catalog(folder)
        return self._catalogs[namespace]

    def _is_due(self, namespace):
        return time.monotonic() - self._refreshed.get(namespace, float("-inf")) >= self.refresh_seconds

    # What can go wrong ----------------------------------------------------------------------------------------------

    def _reset(self):
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._catalogs, self._refreshed = {}, {}
        self._gathered, self._since = {}, {}
        self._held = OrderedDict()
        self._warned = False
        self._retry_at = float("-inf")

    def _try(self, operation, default):
        """Do something with the store; on failure warn once, and return what an empty store would."""
        if self._pid != os.getpid():
            self._reset()  # a forked child: what was gathered is its parent's, and its connections too
        with self._lock:
            if time.monotonic() < self._retry_at:
                return default
            try:
                return operation()
            except Exception as error:
                # Each object store fails with exceptions of its own library, and all mean the same here.
                self._retry_at = time.monotonic() + _RETRY_SECONDS
                self._gathered.clear()
                self._warn(f"cannot be used; embeddings are computed without it ({type(error).__name__}: {error})")
                return default

    def _warn(self, what):
        if not self._warned:
            self._warned = True
            warnings.warn(f"The embedding store {self.url!r} {what}.", CacheWarning, stacklevel=5)


def _cut(data, shard, number, first, positions):
    """The bytes of some rows, by shard and position; `data` starts at the row `first`."""
    size = 4 * shard.width
    return {(number, p): data[(p - first) * size : (p - first + 1) * size] for p in positions}


def _as_row(value):
    return np.frombuffer(value, dtype="<f4").astype(np.float32, copy=False)
