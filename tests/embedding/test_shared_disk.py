"""A store on disk that several processes share: whole rows only, and no row computed twice."""

import os
import signal
import time
from multiprocessing import get_context

import numpy as np
import pytest
from stored_rows import NAMESPACE, assert_same, digest, rows
from torch import nn

from sktl.embedding import DiskStore, MemoryStore, disk, embed_with_stats
from sktl.embedding import _owners as owners

# Python warns of a fork beside other threads, which torch has.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform does not fork")


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


DAMAGED_PIDS = [f"{owners._machine()}|{pid}|" for pid in (-1, 0, 10**30)]


@pytest.mark.parametrize("owner", ["?", "a|b|c", b"|||", 7, "", *DAMAGED_PIDS])
def test_a_damaged_claim_is_nobodys(tmp_path, owner):
    store = DiskStore(tmp_path)
    store.claim(NAMESPACE, [digest(1)])
    store._database.execute("UPDATE claims SET owner = ?", (owner,))
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
