"""The store for many machines: what is read is what was written, or nothing."""

import contextlib
import multiprocessing
import pickle
import threading
import time

import fsspec
import numpy as np
import pytest
import safetensors.numpy

from sktl.embedding import MemoryStore, ObjectFolder, ObjectStore, embed_with_stats, open_store
from sktl.exceptions import CacheWarning, MissingExtraError

NAMESPACE, OTHER = "ab" * 32, "cd" * 32
WIDTH = 48


def digest(k):
    return k.to_bytes(32, "big")


def rows(*numbers):
    """Rows that show by their values whether they are whole and whose they are."""
    return {digest(k): np.random.default_rng(k).standard_normal(WIDTH, dtype=np.float32) for k in numbers}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        np.testing.assert_array_equal(found[key], row)


def written(folder, *parts):
    """Write each part as a shard, from a store of its own."""
    for part in parts:
        store = ObjectStore(folder)
        store.put_many(NAMESPACE, rows(*part))
        store.flush()
    return sorted(folder.rglob("*.safetensors"))


def get(store, *numbers):
    return store.get_many(NAMESPACE, [digest(k) for k in numbers])


def test_rows_gathered_are_found_at_once_and_by_others_when_they_are_written(tmp_path):
    mine, other = ObjectStore(tmp_path), ObjectStore(tmp_path, refresh_seconds=0)
    mine.put_many(NAMESPACE, rows(1, 2))
    assert_same(get(mine, 1, 2, 3), rows(1, 2))
    assert get(other, 1, 2) == {}
    mine.flush()
    assert_same(get(mine, 1, 2, 3), rows(1, 2))
    assert_same(get(other, 1, 2, 3), rows(1, 2))
    assert other.get_many(OTHER, [digest(1)]) == {}


def test_shards_are_written_when_enough_is_gathered(tmp_path):
    store = ObjectStore(tmp_path, shard_bytes=10 * 4 * WIDTH)
    for k in range(25):
        store.put_many(NAMESPACE, rows(k))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    store.flush()
    store.flush()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert_same(get(ObjectStore(tmp_path), *range(25)), rows(*range(25)))


def test_rows_do_not_wait_for_ever(tmp_path):
    store = ObjectStore(tmp_path, flush_seconds=0)
    store.put_many(NAMESPACE, rows(1))
    assert_same(get(ObjectStore(tmp_path), 1), rows(1))


def test_the_same_rows_make_the_same_shard(tmp_path):
    assert len(written(tmp_path, range(9), range(9), range(8))) == 2


def test_rows_of_several_widths(tmp_path):
    store = ObjectStore(tmp_path)
    store.put_many(NAMESPACE, rows(1))
    store.put_many(OTHER, {digest(1): np.ones(7, np.float32)})
    store.flush()
    again = ObjectStore(tmp_path)
    assert_same(get(again, 1), rows(1))
    assert_same(again.get_many(OTHER, [digest(1)]), {digest(1): np.ones(7, np.float32)})


def test_a_shard_is_a_safetensors_file(tmp_path):
    (shard,) = written(tmp_path, range(5))
    tensors = safetensors.numpy.load_file(shard)
    np.testing.assert_array_equal(tensors["rows"], np.stack(list(rows(*range(5)).values())))
    assert tensors["keys"].shape == (5, 20)
    data = shard.read_bytes()
    assert data.endswith(tensors["checksums"].tobytes() + tensors["keys"].tobytes())


def test_single_rows_and_whole_shards_are_read(tmp_path, monkeypatch):
    written(tmp_path, range(40), range(40, 80))
    spans = []
    real = ObjectFolder.read_ranges
    monkeypatch.setattr(ObjectFolder, "read_ranges", lambda self, wanted: spans.extend(wanted) or real(self, wanted))
    store = ObjectStore(tmp_path)
    assert_same(get(store, 3, 50), rows(3, 50))
    assert [end - start for _, start, end in spans[2:]] == [4 * WIDTH] * 2
    assert_same(get(store, *range(30, 45)), rows(*range(30, 45)))
    assert [end - start for _, start, end in spans[4:]] == [40 * 4 * WIDTH] * 2
    assert_same(get(store, *range(80)), rows(*range(80)))
    assert len(spans) == 6


def test_held_shards_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("sktl.embedding.object_store._MAX_HELD_BYTES", 3 * 10 * 4 * WIDTH)
    written(tmp_path, *(range(start, start + 10) for start in range(0, 60, 10)))
    store = ObjectStore(tmp_path)
    for _ in range(2):
        assert_same(get(store, *range(60)), rows(*range(60)))
    assert len(store._held) == 3


@pytest.mark.parametrize("where", [20, 400, -30, -250])
def test_a_changed_byte_is_never_served(tmp_path, where):
    shard, _ = written(tmp_path, range(10), range(10, 20))
    data = bytearray(shard.read_bytes())
    data[where] ^= 1
    shard.write_bytes(data)
    with pytest.warns(CacheWarning, match="damaged") if where < 0 else contextlib.nullcontext():
        found = get(ObjectStore(tmp_path), *range(20))
    assert len(found) >= 10
    assert_same(found, {key: row for key, row in rows(*range(20)).items() if key in found})


@pytest.mark.parametrize("length", [0, 7, 500, -1])
def test_a_torn_shard_is_never_served_and_its_rows_are_written_again(tmp_path, length):
    shard = written(tmp_path, range(10))[0]
    shard.write_bytes(shard.read_bytes()[:length])
    store = ObjectStore(tmp_path)
    with pytest.warns(CacheWarning, match="has a shard that is damaged"):
        assert get(store, *range(10)) == {}
    store.put_many(NAMESPACE, rows(*range(10)))
    store.flush()
    assert_same(get(store, *range(10)), rows(*range(10)))


def test_a_removed_shard_is_no_error(tmp_path):
    first, _ = written(tmp_path, range(10), range(10, 20))
    store = ObjectStore(tmp_path)
    get(store, 1)
    first.unlink()
    assert len(get(store, *range(20))) == 10


def test_other_files_are_left_alone(tmp_path):
    shard = written(tmp_path, range(3))[0]
    (shard.parent / "notes.txt").write_text("mine")
    (shard.parent / ".unfinished.safetensors").write_bytes(b"1")
    (shard.parent / "1²-3-ab.safetensors").write_bytes(b"a digit, but no number")
    with pytest.warns(CacheWarning, match="has a shard that is damaged, '1²-3-ab"):
        assert_same(get(ObjectStore(tmp_path), 1), rows(1))


def test_a_store_that_cannot_be_reached_costs_one_warning(tmp_path):
    (tmp_path / "file").write_text("no folder")
    store = ObjectStore(tmp_path / "file" / "cache")
    with pytest.warns(CacheWarning, match="cannot be used; embeddings are computed without it"):
        assert get(store, 1) == {}
    store.put_many(NAMESPACE, rows(1))
    store.flush()
    assert get(store, 1) == {}


def test_urls_of_fsspec(rng):
    url = f"memory://cache{rng.integers(10**9)}"
    store = open_store(url)
    assert isinstance(store, ObjectStore)
    assert open_store(url) is store
    assert open_store(store) is store
    store.put_many(NAMESPACE, rows(1, 2, 3))
    store.flush()
    assert_same(get(ObjectStore(url), 1, 2, 3), rows(1, 2, 3))


def test_urls_that_nothing_here_can_read(monkeypatch):
    with pytest.raises(ValueError, match="'nonsense://x' is no URL that fsspec knows"):
        open_store("nonsense://x")

    def missing(protocol):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(MissingExtraError, match=r"'s3://x' needs a package that is not installed. Install s3fs"):
        open_store("s3://x")


def test_pickled_and_in_threads(tmp_path):
    store = pickle.loads(pickle.dumps(ObjectStore(tmp_path, shard_bytes=1000)))
    assert store.shard_bytes == 1000

    def work(first):
        for k in range(first, 40, 4):
            store.put_many(NAMESPACE, rows(k))
            assert_same(get(store, k), rows(k))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    store.flush()
    assert_same(get(ObjectStore(tmp_path), *range(40)), rows(*range(40)))


def test_the_engine_writes_what_it_computed(tmp_path, make_rows, view, images):
    policy = {"device": "cpu", "dtype": "float32", "runtime": "torch"}
    first, stats = embed_with_stats(make_rows(images), view, stores=[ObjectStore(tmp_path)], **policy)
    assert stats.from_stores == 0
    stores = [MemoryStore(), ObjectStore(tmp_path)]
    second, stats = embed_with_stats(make_rows(images), view, stores=stores, **policy)
    assert stats.computed == 0
    np.testing.assert_array_equal(first, second)


def _write_for_ever(folder, seed):
    """Write random rows until killed, and stop with an error on a row that is wrong."""
    store = ObjectStore(folder, shard_bytes=20 * 4 * WIDTH, refresh_seconds=0)
    generator = np.random.default_rng(seed)
    while True:
        numbers = generator.integers(0, 400, 12).tolist()
        for key, row in get(store, *numbers).items():
            np.testing.assert_array_equal(row, rows(int.from_bytes(key, "big"))[key])
        store.put_many(NAMESPACE, rows(*numbers))


@pytest.mark.timeout(120)
def test_killed_writers_leave_whole_rows_or_none(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_for_ever, args=(tmp_path, seed), daemon=True) for seed in range(2)]
    try:
        for writer in writers:
            writer.start()
        until = time.monotonic() + 90
        while len(list(tmp_path.rglob("*.safetensors"))) < 8 and time.monotonic() < until:
            time.sleep(0.01)
        assert all(writer.is_alive() for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.join(30)
    found = get(ObjectStore(tmp_path), *range(400))
    assert len(found) > 50
    assert_same(found, {key: row for key, row in rows(*range(400)).items() if key in found})
