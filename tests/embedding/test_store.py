"""Stores: what is put is what is got, whoever writes beside, and whatever happens to process, disk and file."""

import os
import pickle
import sqlite3
import time

import joblib
import numpy as np
import pytest
from stored_rows import NAMESPACE, OTHER, assert_same, digest, rows

from sktl.embedding import DiskStore, MemoryStore, ObjectStore, default_store, disk, open_store
from sktl.exceptions import CacheWarning

# Python warns of a fork beside other threads, which torch has.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform does not fork")


@pytest.fixture(params=[MemoryStore, DiskStore, ObjectStore])
def store(request, tmp_path):
    return request.param() if request.param is MemoryStore else request.param(tmp_path)


def test_hit_and_miss(store):
    store.put_many(NAMESPACE, rows(1, 2))
    assert_same(store.get_many(NAMESPACE, [digest(2), digest(3), digest(1)]), rows(1, 2))
    assert store.get_many(OTHER, [digest(1)]) == {}
    assert store.get_many(NAMESPACE, []) == {}
    store.put_many(NAMESPACE, {})


def test_rows_are_read_only_copies(store):
    given = rows(1)
    store.put_many(NAMESPACE, given)
    given[digest(1)][:] = 0
    found = store.get_many(NAMESPACE, [digest(1)])[digest(1)]
    assert found.dtype == np.float32
    assert found[0] == 1
    assert not found.flags.writeable


def test_a_row_can_be_replaced(store):
    store.put_many(NAMESPACE, rows(1))
    store.put_many(NAMESPACE, {digest(1): np.zeros(5)})
    assert store.get_many(NAMESPACE, [digest(1)])[digest(1)].tolist() == [0] * 5


def test_many_rows_at_once(store):
    store.put_many(NAMESPACE, rows(*range(1200), width=2))
    assert_same(store.get_many(NAMESPACE, [digest(k) for k in range(1200)]), rows(*range(1200), width=2))


# In memory ------------------------------------------------------------------------------------------------------------


def test_memory_drops_what_was_not_used_for_longest():
    store = MemoryStore(max_bytes=3 * (64 * 4 + 400))
    store.put_many(NAMESPACE, rows(1, 2, 3))
    store.get_many(NAMESPACE, [digest(1)])
    store.put_many(NAMESPACE, rows(4))
    assert_same(store.get_many(NAMESPACE, [digest(k) for k in range(6)]), rows(1, 3, 4))
    store.clear()
    assert len(store) == 0
    store.put_many(NAMESPACE, rows(1, width=10_000))
    assert len(store) == 0


def test_default_store_is_one():
    assert default_store() is default_store()
    assert default_store().max_bytes == 512 * 2**20


def test_memory_store_is_pickled_without_rows():
    store = MemoryStore(max_bytes=1000)
    store.put_many(NAMESPACE, rows(1))
    copied = pickle.loads(pickle.dumps(store))
    assert copied.max_bytes == 1000
    assert len(copied) == 0


# On disk --------------------------------------------------------------------------------------------------------------


def test_disk_is_not_touched_before_use(tmp_path):
    store = DiskStore(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    store.put_many(NAMESPACE, rows(1))
    assert store.path.is_file()


def test_disk_is_pickled_as_a_path(tmp_path):
    store = DiskStore(tmp_path, max_bytes=10**6)
    store.put_many(NAMESPACE, rows(1))
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    copied = pickle.loads(pickled)
    assert copied.max_bytes == 10**6
    assert_same(copied.get_many(NAMESPACE, [digest(1)]), rows(1))


def test_disk_is_bounded(tmp_path):
    store = DiskStore(tmp_path, max_bytes=400_000)
    for start in range(0, 1000, 20):
        store.put_many(NAMESPACE, rows(*range(start, start + 20), width=256))
    found = store.get_many(NAMESPACE, [digest(k) for k in range(1000)])
    assert 100 < len(found) < 400
    assert digest(999) in found
    assert digest(0) not in found
    store.close()
    assert store.path.stat().st_size < 450_000


def test_disk_keeps_what_is_used(tmp_path, monkeypatch):
    store = DiskStore(tmp_path, max_bytes=200_000)
    clock = time.time()
    for start in range(0, 1000, 20):
        monkeypatch.setattr(time, "time", lambda start=start: clock + 10_000 * start)
        store.put_many(NAMESPACE, rows(*range(start, start + 20), width=256))
        assert digest(0) in store.get_many(NAMESPACE, [digest(0)])


def test_open_store(tmp_path):
    assert open_store(None) is None
    assert open_store(joblib.Memory(None)) is None
    assert open_store(joblib.Memory(tmp_path, verbose=0)).folder.startswith(str(tmp_path))
    assert open_store(tmp_path).folder == open_store(str(tmp_path)).folder == str(tmp_path)
    assert open_store(tmp_path) is open_store(str(tmp_path))
    with pytest.raises(ValueError, match=r"The 'memory' parameter must be None, a folder .* got 3 instead"):
        open_store(3)


def test_rows_that_changed_on_disk_are_not_served(tmp_path):
    store = DiskStore(tmp_path)
    store.put_many(NAMESPACE, rows(1, 2, 3, 4, 5))
    store.close()
    with sqlite3.connect(store.path) as database:
        keys = [key for (key,) in database.execute("SELECT key FROM rows ORDER BY rowid")]
        database.execute("UPDATE rows SET value = zeroblob(256) WHERE key = ?", keys[:1])
        database.execute("UPDATE rows SET value = substr(value, 1, 200) WHERE key = ?", keys[1:2])
        value, checksum = database.execute("SELECT value, checksum FROM rows WHERE key = ?", keys[3:4]).fetchone()
        database.execute("UPDATE rows SET value = ?, checksum = ? WHERE key = ?", (value, checksum, keys[2]))
        database.execute("UPDATE rows SET used = 'long ago' WHERE key = ?", keys[4:5])
    database.close()
    assert_same(store.get_many(NAMESPACE, [digest(k) for k in (1, 2, 3, 4, 5)]), rows(4))
    store.put_many(NAMESPACE, rows(1))
    assert_same(store.get_many(NAMESPACE, [digest(1)]), rows(1))


@pytest.mark.parametrize("damage", ["no database", "header", "pages", "empty"])
def test_damaged_database_is_moved_aside(tmp_path, damage):
    store = DiskStore(tmp_path)
    store.put_many(NAMESPACE, rows(*range(500)))
    store.close()
    whole = store.path.read_bytes()
    noise = np.random.default_rng(0).bytes(len(whole))
    damaged = {
        "no database": b"hello" * 1000,
        "header": noise[:100] + whole[100:],
        "pages": whole[:4096] + noise[4096:],
        "empty": b"",
    }[damage]
    store.path.write_bytes(damaged)
    if damage == "empty":  # an empty file is an empty database
        assert store.get_many(NAMESPACE, [digest(1)]) == {}
    else:
        with pytest.warns(CacheWarning, match="is damaged; it was moved to .*damaged-.* and is begun anew"):
            assert store.get_many(NAMESPACE, [digest(1)]) == {}
        assert any("damaged" in name for name in os.listdir(tmp_path))
    store.put_many(NAMESPACE, rows(1))
    assert_same(store.get_many(NAMESPACE, [digest(1)]), rows(1))


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    store = DiskStore(tmp_path / "file" / "cache")
    with pytest.warns(CacheWarning, match="cannot be used; embeddings are computed without it"):
        assert store.get_many(NAMESPACE, [digest(1)]) == {}
    store.put_many(NAMESPACE, rows(1))  # it is said once: a second warning would be an error here
    assert store.claim(NAMESPACE, [digest(1)]) == set()


def test_folder_that_is_read_only(tmp_path, monkeypatch):
    store = DiskStore(tmp_path)
    store.put_many(NAMESPACE, rows(1))
    store.close()

    def refuse(path):
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(disk, "_connect", refuse)
    with pytest.warns(CacheWarning, match="cannot be written; rows are only read from it"):
        found = store.get_many(NAMESPACE, [digest(1), digest(2)])
    assert_same(found, rows(1))
    store.put_many(NAMESPACE, rows(2))
    assert store.claim(NAMESPACE, [digest(2)]) == set()


def test_full_disk(tmp_path, monkeypatch):
    store = DiskStore(tmp_path)
    store.put_many(NAMESPACE, rows(1))
    store._database.execute("PRAGMA max_page_count = 20")
    with pytest.warns(CacheWarning, match=r"cannot be written.*\(database or disk is full\)"):
        store.put_many(NAMESPACE, rows(*range(2, 2000)))
    assert_same(store.get_many(NAMESPACE, [digest(1)]), rows(1))
    monkeypatch.setattr(store, "_retry_at", 0)  # a while later, there is room again
    store.put_many(NAMESPACE, rows(3000))
    assert_same(store.get_many(NAMESPACE, [digest(3000)]), rows(3000))


def test_locked_database_does_not_stop_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_BUSY_SECONDS", 0.05)
    store = DiskStore(tmp_path)
    store.put_many(NAMESPACE, rows(1))
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.warns(CacheWarning, match="is locked by another process"):
        store.put_many(NAMESPACE, rows(2))
    other.close()
    store.put_many(NAMESPACE, rows(3))
    assert_same(store.get_many(NAMESPACE, [digest(k) for k in (1, 2, 3)]), rows(1, 3))


def test_removed_database_is_begun_anew(tmp_path):
    store = DiskStore(tmp_path)
    store.put_many(NAMESPACE, rows(1))
    for name in os.listdir(tmp_path):
        os.remove(tmp_path / name)
    assert store.get_many(NAMESPACE, [digest(1)]) == {}
    store.put_many(NAMESPACE, rows(2))
    assert_same(DiskStore(tmp_path).get_many(NAMESPACE, [digest(2)]), rows(2))
