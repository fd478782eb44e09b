"""Several threads of one process embed the same rows: each row is computed by one of them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sktl.embedding import DiskStore, MemoryStore, embed_with_stats
from sktl.embedding.store import Shelf
from sktl.exceptions import InputError

POLICY = {"device": "cpu", "runtime": "torch", "dtype": "float32"}


def together(n_threads, work):
    """Run a function in threads that start at the same moment."""
    start = threading.Barrier(n_threads)

    def run(number):
        start.wait(timeout=30)
        return work(number)

    with ThreadPoolExecutor(n_threads) as threads:
        return list(threads.map(run, range(n_threads)))


@pytest.mark.parametrize("on_disk", [False, True])
def test_each_row_is_computed_once(on_disk, make_rows, view, images, tmp_path):
    stores = [MemoryStore(), *([DiskStore(tmp_path)] if on_disk else [])]
    alone, _ = embed_with_stats(make_rows(images), view, **POLICY)
    done = together(3, lambda number: embed_with_stats(make_rows(images), view, stores=stores, **POLICY))
    assert sum(stats.computed for _, stats in done) == len(images)
    assert sum(stats.from_stores for _, stats in done) == 2 * len(images)
    for embeddings, _ in done:
        np.testing.assert_array_equal(embeddings, alone)


def test_what_a_failed_thread_gave_up_is_computed_by_the_others(make_rows, view, images):
    store = MemoryStore()

    def work(number):
        bad = [20] if number == 0 else []
        try:
            return embed_with_stats(make_rows(images, unreadable=bad), view, stores=[store], **POLICY)[0]
        except InputError:
            return None

    failed, *others = together(3, work)
    assert failed is None
    for embeddings in others:
        assert np.isfinite(embeddings).all()
    assert not store._claims


def test_a_claim_is_given_up_where_a_later_store_refuses_it(tmp_path, monkeypatch):
    memory, folder = MemoryStore(), DiskStore(tmp_path)
    monkeypatch.setattr(folder, "claim", lambda namespace, digests: set(digests[:1]))
    digests = [b"a" * 32, b"b" * 32]
    assert Shelf([memory, folder], "ab" * 32).claim(digests) == {digests[0]}
    assert [digest for _, digest in memory._claims] == digests[1:]


def test_threads_may_embed_at_once_without_a_store(make_rows, view, images, expected):
    results = [rows for rows, _ in together(4, lambda number: embed_with_stats(make_rows(images), view, **POLICY))]
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    np.testing.assert_allclose(results[0], expected, rtol=1e-4, atol=1e-5)
