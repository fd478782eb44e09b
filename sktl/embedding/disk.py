"""A store of embedding rows on disk, shared by processes and sessions: one SQLite database in WAL mode.

SQLite brings what a cache folder has to have and files alone lack: a row is there or not, whenever a process is killed;
many processes may write; and a bound on the size can be kept. Each row carries a checksum over key and content beside
that, so what a broken disk returns is not served either.
"""

import contextlib
import os
import sqlite3
import threading
import time
import warnings
from pathlib import Path

import numpy as np

from sktl.embedding import _owners
from sktl.embedding._catalog import row_checksum, row_key
from sktl.embedding.store import Store
from sktl.exceptions import CacheWarning

SCHEMA_VERSION = 1
FILE_NAME = f"sktl-embeddings-v{SCHEMA_VERSION}.sqlite"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL, used INTEGER)",
    "CREATE INDEX IF NOT EXISTS rows_used ON rows (used)",
    "CREATE TABLE IF NOT EXISTS claims (key BLOB PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL)",
)
_BUSY_SECONDS = 20
# A claim is for a window of rows that is computed next; an owner known to be dead loses its claims at once.
_CLAIM_SECONDS = 60
_KEYS_PER_QUERY = 500
_RETRY_SECONDS = 60
# Reading marks a row as used only if its mark is older than this, lest a cache that is read is written all the time.
_USED_RESOLUTION = 3600
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class DiskStore(Store):
    """Rows kept in a folder.

    The database is opened at the first use. Trouble with it is never an error, only a warning: if the folder cannot be
    written to or the disk is full, the work goes on without it; a damaged database is moved aside and begun anew.

    Parameters
    ----------
    folder : str or path
        Where the database is; made if it is not there.

    max_bytes : int or None, default=None
        Bound on the size of the database; the rows that were not used for longest are dropped first. None is no bound.
    """

    def __init__(self, folder, max_bytes=None):
        self.folder = os.path.abspath(os.fspath(folder))
        self.max_bytes = max_bytes
        self._reset()

    def __repr__(self):
        return f"{type(self).__name__}({self.folder!r}, max_bytes={self.max_bytes!r})"

    def __getstate__(self):
        return {"folder": self.folder, "max_bytes": self.max_bytes}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._reset()

    def __del__(self):
        if getattr(self, "_pid", None) == os.getpid():
            self.close()

    @property
    def path(self):
        """The database file."""
        return Path(self.folder) / FILE_NAME

    def get_many(self, namespace, digests):
        """Look rows up; see :meth:`Store.get_many`."""
        keys = {row_key(namespace, digest): digest for digest in digests}
        found = self._try(lambda database: self._select(database, list(keys)), {}, writes=False)
        return {keys[key]: value for key, value in found.items()}

    def lacking(self, namespace, digests):
        """Tell which rows are not in the database; see :meth:`Store.lacking`."""
        keys = {row_key(namespace, digest): digest for digest in digests}
        lacking = self._try(lambda database: set(keys) - set(_stored_keys(database, list(keys))), (), writes=True)
        return [keys[key] for key in lacking]

    def put_many(self, namespace, rows):
        """Write rows in one transaction; see :meth:`Store.put_many`."""
        now = int(time.time())
        records = []
        for digest, row in rows.items():
            key, value = row_key(namespace, digest), np.ascontiguousarray(row, dtype="<f4").tobytes()
            records.append((key, value, row_checksum(key, value), now))
        if records:
            self._try(lambda database: self._insert(database, records), None, writes=True)

    def claim(self, namespace, digests):
        """Claim rows for this process; see :meth:`Store.claim`."""
        keys = {row_key(namespace, digest): digest for digest in digests}
        taken = self._try(lambda database: self._claim(database, list(keys)), set(), writes=True)
        return {keys[key] for key in taken}

    def release(self, namespace, digests):
        """Give claims up; see :meth:`Store.release`."""
        keys = [row_key(namespace, digest) for digest in digests]

        def delete(database):
            with _transaction(database):
                sql = "DELETE FROM claims WHERE key = ? AND owner = ?"
                database.executemany(sql, [(key, _owners.this_process()) for key in keys])

        if keys:
            self._try(delete, None, writes=True)

    def close(self):
        """Close the database; the next use opens it again."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    # Statements ----------------------------------------------------------------------------------------------------

    def _select(self, database, keys):
        found, stale, now = {}, [], int(time.time())
        for key, value, used in _intact_rows(database, keys):
            found[key] = np.frombuffer(value, dtype="<f4").astype(np.float32, copy=False)
            if now - used > _USED_RESOLUTION:
                stale.append((now, key))
        if stale and self.max_bytes is not None and not self._read_only:
            with _transaction(database):
                database.executemany("UPDATE rows SET used = ? WHERE key = ?", stale)
        return found

    def _insert(self, database, records):
        with _transaction(database):
            database.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", records)
            database.executemany("DELETE FROM claims WHERE key = ?", [record[:1] for record in records])
            if self.max_bytes is not None:
                self._evict(database)

    def _evict(self, database):
        """Drop old rows until a tenth of the bound is free, so that not every write has to."""
        if _used_bytes(database) <= self.max_bytes:
            return
        while _used_bytes(database) > 0.9 * self.max_bytes:
            n_rows = database.execute("SELECT COUNT(*) FROM rows").fetchone()[0]
            if n_rows == 0:
                break
            sql = "DELETE FROM rows WHERE key IN (SELECT key FROM rows ORDER BY used, rowid LIMIT ?)"
            database.execute(sql, (max(1, n_rows // 20),))
        database.execute("PRAGMA incremental_vacuum").fetchall()

    def _claim(self, database, keys):
        now, me = time.time(), _owners.this_process()
        with _transaction(database):
            taken = {key for key, *_ in _intact_rows(database, keys)}  # a damaged row is there for nobody
            for few, marks in _in_parts(keys):
                sql = f"SELECT key, owner FROM claims WHERE key IN ({marks}) AND owner != ? AND expires > ?"
                claims = database.execute(sql, (*few, me, now)).fetchall()
                alive = {owner: _owners.is_alive(owner) for owner in {owner for _, owner in claims}}
                taken.update(key for key, owner in claims if alive[owner])
            mine = [(key, me, now + _CLAIM_SECONDS) for key in keys if key not in taken]
            database.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", mine)
        return taken

    # The connection, and what can go wrong with it -----------------------------------------------------------------

    def _reset(self):
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._database = None
        self._file_id = None
        self._warned = False
        self._recover()

    def _recover(self):
        """Forget what went wrong, and give the folder another chance."""
        self._read_only = False
        self._useless = False
        self._retry_at = float("inf")

    def _try(self, operation, default, *, writes):
        """Run an operation on the database; on failure warn once, and return what an empty store would."""
        if self._pid != os.getpid():
            # A connection must not be used, nor even closed, in a forked child: it is left to the parent's process.
            _LEFT_TO_PARENT.append(self._database)
            self._reset()
        with self._lock:
            if time.monotonic() > self._retry_at:
                self.close()
                self._recover()
            for attempt in range(2):
                if self._useless or (writes and self._read_only):
                    return default
                try:
                    return operation(self._open())
                except (sqlite3.Error, OSError) as error:
                    self._give_way(error, writes, last=attempt == 1)
        return default

    def _open(self):
        if self._database is not None and _file_id(self.path) != self._file_id:
            self.close()  # somebody removed the file or moved it aside
        if self._database is None:
            self._database = _connect_read_only(self.path) if self._read_only else _connect(self.path)
            self._file_id = _file_id(self.path)
        return self._database

    def _give_way(self, error, writes, last):
        """Decide what is still possible after an error, for the next minute."""
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        code = getattr(error, "sqlite_errorcode", None)
        code = None if code is None else code & 0xFF  # the upper bytes say where it happened
        unopened = self._database is None
        with contextlib.suppress(sqlite3.Error):
            self.close()
        if code == sqlite3.SQLITE_BUSY:
            self._warn(f"is locked by another process for more than {_BUSY_SECONDS} seconds", error)
        elif code in _CORRUPT and not last:
            moved_to = _move_aside(self.path)
            self._warn(f"is damaged; it was moved to {moved_to} and is begun anew", error)
        elif unopened and not self._read_only and self.path.is_file() and code not in _CORRUPT:
            self._read_only = True
            self._warn("cannot be written; rows are only read from it", error)
        elif unopened or not writes or code in _CORRUPT:
            self._useless = True
            self._warn("cannot be used; embeddings are computed without it", error)
        else:
            self._read_only = True
            self._warn("cannot be written; rows are only read from it", error)

    def _warn(self, what, error):
        if not self._warned:
            self._warned = True
            warnings.warn(f"The embedding store {str(self.path)!r} {what} ({error}).", CacheWarning, stacklevel=5)


_LEFT_TO_PARENT = []


def _connect(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        database.execute("PRAGMA journal_mode = WAL").fetchall()
        database.execute("PRAGMA synchronous = NORMAL")  # no wait for the disk at each commit; a kill loses nothing
        if database.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
            with _transaction(database):
                for statement in _SCHEMA:
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    except BaseException:
        database.close()
        raise
    return database


def _connect_read_only(path):
    """Without the lock files that WAL mode would write; checksums catch what a writer changes meanwhile."""
    uri = f"{path.as_uri()}?mode=ro&immutable=1"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


@contextlib.contextmanager
def _transaction(database):
    # IMMEDIATE: a read that becomes a write could not wait for another writer, and would fail.
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _file_id(path):
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _move_aside(path):
    target = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.replace(path, target)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(f"{path}{suffix}")
    return str(target)


def _used_bytes(database):
    pages, free, size = (
        database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _intact_rows(database, keys):
    """Yield key, value and time of last use of the rows that are there and fit their checksums."""
    for few, marks in _in_parts(keys):
        sql = f"SELECT key, value, checksum, used FROM rows WHERE key IN ({marks})"
        for key, value, checksum, used in database.execute(sql, few):
            is_typed = isinstance(value, bytes) and isinstance(used, int)  # columns of SQLite hold anything
            if is_typed and checksum == row_checksum(key, value):
                yield key, value, used


def _stored_keys(database, keys):
    for few, marks in _in_parts(keys):
        yield from (key for (key,) in database.execute(f"SELECT key FROM rows WHERE key IN ({marks})", few))


def _in_parts(keys):
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        few = keys[start : start + _KEYS_PER_QUERY]
        yield few, ",".join("?" * len(few))
