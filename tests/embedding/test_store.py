"""Stores: what is put is what is got, whoever writes beside, and whatever happens to process, disk and file."""

import os
import pickle
import signal
import sqlite3
import time
from multiprocessing import get_context

import joblib
import numpy as np
import pytest
from torch import nn

from sktl.embedding import DiskStore, MemoryStore, ObjectStore, default_store, disk, embed_with_stats, open_store
from sktl.embedding import _owners as owners
from sktl.exceptions import CacheWarning

# Python warns of a fork beside other threads, which torch has.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform does not fork")

NAMESPACE, OTHER = "ab" * 32, "cd" * 32


def digest(k):
    return k.to_bytes(32, "big")


def rows(*numbers, width=64):
    """Rows that show by their values whether they are whole and whose they are."""
    return {digest(k): np.full(width, k, dtype=np.float32) for k in numbers}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        np.testing.assert_array_equal(found[key], row)


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
    store.put_many(NAMESPACE, rows(1, 2, 3, 4))
    store.close()
    with sqlite3.connect(store.path) as database:
        keys = [key for (key,) in database.execute("SELECT key FROM rows ORDER BY rowid")]
        database.execute("UPDATE rows SET value = zeroblob(256) WHERE key = ?", keys[:1])
        database.execute("UPDATE rows SET value = substr(value, 1, 200) WHERE key = ?", keys[1:2])
        value, checksum = database.execute("SELECT value, checksum FROM rows WHERE key = ?", keys[3:]).fetchone()
        database.execute("UPDATE rows SET value = ?, checksum = ? WHERE key = ?", (value, checksum, keys[2]))
    database.close()
    assert_same(store.get_many(NAMESPACE, [digest(k) for k in (1, 2, 3, 4)]), rows(4))
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


# Many processes -------------------------------------------------------------------------------------------------------


def write_rows(folder, start):
    store = DiskStore(folder)
    for k in range(start, start + 100, 5):
        store.put_many(NAMESPACE, rows(*range(k, k + 5)))
    store.close()


@needs_fork
def test_processes_write_at_once(tmp_path):
    processes = [get_context("fork").Process(target=write_rows, args=(tmp_path, 100 * k)) for k in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert_same(DiskStore(tmp_path).get_many(NAMESPACE, [digest(k) for k in range(400)]), rows(*range(400)))


@needs_fork
def test_a_forked_child_has_a_connection_of_its_own(tmp_path):
    store = DiskStore(tmp_path)
    store.put_many(NAMESPACE, rows(1))
    store._lock.acquire()  # as a thread of the parent might at the moment of the fork
    pid = os.fork()
    if pid == 0:
        store.put_many(NAMESPACE, rows(2))
        os._exit(len(store.get_many(NAMESPACE, [digest(1), digest(2)])))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    store._lock.release()
    assert_same(store.get_many(NAMESPACE, [digest(1), digest(2)]), rows(1, 2))


@needs_fork
def test_kill_leaves_whole_rows_only(tmp_path):
    """Killed at ten moments while it writes, a process leaves nothing that is served wrongly."""
    delays = np.random.default_rng(0).uniform(0, 0.05, 10)
    written = 0
    for k, delay in enumerate(delays):
        folder = tmp_path / f"killed{k}"
        pid = os.fork()
        if pid == 0:
            write_forever(folder)
        wait_for_rows(folder)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        store = DiskStore(folder)
        found = store.get_many(NAMESPACE, [digest(i) for i in range(5000)])
        assert_same(found, rows(*range(len(found))))
        assert len(found) % 8 == 0
        assert store._database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        store.put_many(NAMESPACE, rows(10**6))
        assert digest(10**6) in store.get_many(NAMESPACE, [digest(10**6)])
        written += len(found)
    assert written > 0


def wait_for_rows(folder):
    log = folder / f"{disk.FILE_NAME}-wal"
    while not log.exists() or log.stat().st_size < 50_000:
        time.sleep(0.001)


def write_forever(folder):
    store = DiskStore(folder)
    for start in range(0, 10**9, 8):
        store.put_many(NAMESPACE, rows(*range(start, start + 8)))


# Claims ---------------------------------------------------------------------------------------------------------------


def test_claims(tmp_path, monkeypatch):
    mine, other = DiskStore(tmp_path), DiskStore(tmp_path)
    keys = [digest(k) for k in range(4)]
    assert mine.claim(NAMESPACE, keys[:2]) == set()
    assert mine.claim(NAMESPACE, keys[:2]) == set()  # a claim may be renewed
    monkeypatch.setattr(owners, "this_process", lambda: f"{owners._machine()}|1|{owners._start_time(1)}")
    assert other.claim(NAMESPACE, keys[:3]) == set(keys[:2])
    other.release(NAMESPACE, keys)  # of its own only
    assert other.claim(NAMESPACE, keys[:2]) == set(keys[:2])
    monkeypatch.undo()
    mine.put_many(NAMESPACE, rows(0))
    mine.release(NAMESPACE, keys[1:2])
    monkeypatch.setattr(owners, "this_process", lambda: f"{owners._machine()}|1|{owners._start_time(1)}")
    assert other.claim(NAMESPACE, keys[:2]) == {keys[0]}  # it is there by now


def test_claims_expire(tmp_path, monkeypatch):
    store = DiskStore(tmp_path)
    monkeypatch.setattr(owners, "this_process", lambda: "another machine|1|1")
    store.claim(NAMESPACE, [digest(1)])
    monkeypatch.undo()
    assert store.claim(NAMESPACE, [digest(1)]) == {digest(1)}
    later = time.time() + disk._CLAIM_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert store.claim(NAMESPACE, [digest(1)]) == set()


@needs_fork
def test_owners():
    assert owners.is_alive(owners.this_process())
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    name = f"{owners._machine()}|{pid}|{owners._start_time(pid) or '12345'}"
    os.waitpid(pid, 0)
    assert not owners.is_alive(name)
    assert not owners.is_alive(f"{owners._machine()}|{pid}|")
    assert owners.is_alive("another machine|1|1")


@needs_fork
def test_the_claims_of_a_killed_process_are_taken_over_at_once(tmp_path):
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        DiskStore(tmp_path).claim(NAMESPACE, [digest(1)])
        os.write(tell, b"x")
        time.sleep(100)
    os.read(ready, 1)
    store = DiskStore(tmp_path)
    assert store.claim(NAMESPACE, [digest(1)]) == {digest(1)}
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert store.claim(NAMESPACE, [digest(1)]) == set()


def embed_all(folder, computed, start, make_rows, view, images):
    start.wait()
    policy = {"device": "cpu", "runtime": "torch", "dtype": "float32", "n_threads": 1}
    result, stats = embed_with_stats(make_rows(images), view, stores=[MemoryStore(), DiskStore(folder)], **policy)
    computed.put((stats.computed, result))


@needs_fork
def test_processes_share_the_work(tmp_path, make_rows, make_view):
    """Processes that embed the same rows compute each row about once."""
    view = make_view(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()).eval(), width=12)
    images = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
    context = get_context("fork")
    computed, start = context.Queue(), context.Event()
    arguments = (tmp_path, computed, start, make_rows, view, images)
    processes = [context.Process(target=embed_all, args=arguments) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    answers = [computed.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert 400 <= sum(count for count, _ in answers) <= 1.05 * 400
    for _, result in answers:
        np.testing.assert_array_equal(result, answers[0][1])


def test_second_session_computes_nothing(tmp_path, make_rows, view, images):
    policy = {"device": "cpu", "runtime": "torch"}
    first, stats = embed_with_stats(make_rows(images), view, stores=[DiskStore(tmp_path)], **policy)
    assert stats.computed == 50
    rows_again = make_rows(images)
    second, stats = embed_with_stats(rows_again, view, stores=[MemoryStore(), DiskStore(tmp_path)], **policy)
    assert (stats.computed, stats.from_stores) == (0, 50)
    assert rows_again.calls == []
    np.testing.assert_array_equal(first, second)


def test_rows_that_others_gave_up_are_computed_here(tmp_path, make_rows, view, images, monkeypatch):
    """Rows claimed elsewhere come last, and are taken over when the claim ends without a result."""
    policy = {"device": "cpu", "runtime": "torch"}
    store = DiskStore(tmp_path)
    monkeypatch.setattr(disk, "_CLAIM_SECONDS", 0.5)
    monkeypatch.setattr(owners, "this_process", lambda: "another machine|1|1")
    real_claim = DiskStore.claim
    namespaces = []
    monkeypatch.setattr(DiskStore, "claim", lambda self, namespace, keys: namespaces.append(namespace) or set())
    embed_with_stats(make_rows(images[:1]), view, stores=[store], **policy)
    monkeypatch.setattr(DiskStore, "claim", real_claim)
    all_rows = make_rows(images)
    store.claim(namespaces[0], [all_rows[k].digest for k in range(10, 20)])
    monkeypatch.setattr(owners, "this_process", lambda: "this machine|1|1")
    result, stats = embed_with_stats(all_rows, view, stores=[store], **policy)
    assert (stats.computed, stats.from_stores) == (49, 1)
    assert np.isfinite(result).all()
