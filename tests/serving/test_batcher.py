"""Requests go together in whole passes, in their order, and none suffers from another."""

import threading

import pytest
from servers import httpx  # noqa: F401 -- skips where the extra is missing

from sktl.serving._batcher import Batcher, Busy


class Machine:
    """Echoes what it is given, once it may."""

    def __init__(self):
        self.may_run = threading.Event()
        self.has_begun = threading.Semaphore(0)
        self.batches = []

    def __call__(self, requests):
        self.has_begun.release()
        assert self.may_run.wait(20)
        if requests[0][0] != b"first":
            self.batches.append([image for images in requests for image in images])
        if any(b"poison" in images for images in requests):
            raise ZeroDivisionError
        return [list(images) for images in requests]


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
def batcher(machine):
    """Both threads of it are at work already, on one image each."""
    batcher = Batcher(machine, 40, pass_size=4, max_images=8)
    first = []
    for _ in range(2):
        first.append(batcher.submit([b"first"] * 4))
        assert machine.has_begun.acquire(timeout=20)
    yield batcher
    machine.may_run.set()
    batcher.close()
    assert all(answer.result(0) == [b"first"] * 4 for answer in first)


def test_whole_passes_in_order(machine, batcher):
    images = [b"%d" % number for number in range(10)]
    answers = [batcher.submit([image]) for image in images]
    assert batcher.n_queued == 10
    machine.may_run.set()
    assert [answer.result(20) for answer in answers] == [[image] for image in images]
    assert sorted(map(len, machine.batches)) == [2, 8]
    assert images[:8] in machine.batches


def test_requests_stay_whole(machine, batcher):
    answers = [batcher.submit([b"%d" % number] * number) for number in (3, 3, 12)]
    machine.may_run.set()
    assert [len(answer.result(20)) for answer in answers] == [3, 3, 12]
    assert sorted(map(len, machine.batches)) == [6, 12]


def test_others_do_not_suffer(machine, batcher):
    answers = [batcher.submit([image]) for image in (b"a", b"poison", b"b")]
    machine.may_run.set()
    assert answers[0].result(20) == [b"a"]
    assert answers[2].result(20) == [b"b"]
    with pytest.raises(ZeroDivisionError):
        answers[1].result(20)


def test_bound(batcher):
    batcher.submit([b"x"] * 39)
    with pytest.raises(Busy):
        batcher.submit([b"x", b"x"])
    batcher.submit([b"x"])


def test_cancelled_requests_cost_nothing(machine, batcher):
    cancelled, kept = batcher.submit([b"cancelled"]), batcher.submit([b"kept"])
    assert cancelled.cancel()
    machine.may_run.set()
    assert kept.result(20) == [b"kept"]
    assert [b"kept"] in machine.batches
    assert not any(b"cancelled" in batch for batch in machine.batches)


def test_end(machine, batcher):
    answer = batcher.submit([b"last"])
    machine.may_run.set()
    batcher.close()
    assert answer.result(0) == [b"last"]
    with pytest.raises(Busy):
        batcher.submit([b"too late"])
