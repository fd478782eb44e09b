"""Images are decoded as they come and go together in whole passes, in their order, and none suffers from another."""

import threading

import numpy as np
import pytest
from servers import httpx  # noqa: F401 -- skips where the extra is missing

from sktl.inputs import RowError
from sktl.serving._batcher import Batcher, Busy
from sktl.serving._model import BadImages


class Model:
    """Answers with the lengths of the images; passes wait until they may run."""

    shares_passes = True
    pass_size, n_lanes, n_threads = 4, 1, 2

    def __init__(self):
        self.may_run = threading.Event()
        self.has_begun = threading.Semaphore(0)
        self.limited = []
        self.decoded = []
        self.passes = []

    def limit_thread(self):
        self.limited.append(threading.current_thread().name)

    def prepare(self, image):
        self.decoded.append(image)
        if image == b"broken":
            raise RowError("cannot be read")
        if image == b"bug":
            raise ZeroDivisionError
        return np.array([len(image)]) if image != b"infinite" else np.array([np.inf])

    def run(self, prepared):
        self.has_begun.release()
        assert self.may_run.wait(20)
        self.passes.append([int(each[0]) if np.isfinite(each[0]) else None for each in prepared])
        if any(each[0] == len(b"poison") for each in prepared):
            raise ZeroDivisionError
        return np.stack(prepared)

    def answer(self, embeddings):
        return embeddings[:, 0].tolist()

    def answer_whole(self, images):
        if b"bug" in images:
            raise ZeroDivisionError
        return [len(image) for image in images]


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def batcher(model):
    """A pass of it has begun already, and waits."""
    batcher = Batcher(model, 40)
    first = batcher.submit([b"1234567"] * 4)
    assert model.has_begun.acquire(timeout=20)
    yield batcher
    model.may_run.set()
    batcher.close()
    assert first.result(0) == [7] * 4


def images(*lengths):
    return [b"x" * length for length in lengths]


def decoded(model, n_images):
    """Wait until so many images are decoded."""
    for _ in range(2000):
        if len(model.decoded) >= n_images:
            return True
        threading.Event().wait(0.01)
    return False


def test_whole_passes_in_order(model, batcher):
    answers = [batcher.submit(images(length)) for length in range(1, 11) if length != 6]
    model.may_run.set()
    assert [answer.result(20) for answer in answers] == [[length] for length in range(1, 11) if length != 6]
    assert model.passes == [[7] * 4, [1, 2, 3, 4], [5, 7, 8, 9], [10]]


def test_images_are_decoded_while_a_pass_runs(model, batcher):
    batcher.submit(images(1, 2))
    batcher.submit(images(3))
    assert decoded(model, 4 + 3)
    assert model.decoded[4:] == images(1, 2, 3)
    assert model.passes == []
    assert batcher.n_queued == 3


def test_large_requests_go_through_several_passes(model, batcher):
    small, large = batcher.submit(images(1)), batcher.submit(images(*range(10, 18)))
    model.may_run.set()
    assert small.result(20) == [1]
    assert large.result(20) == list(range(10, 18))
    assert sorted(map(len, model.passes)) == [1, 4, 4, 4]


def test_a_pass_that_is_not_full_runs_when_nothing_else_is_to_do(model):
    model.may_run.set()
    batcher = Batcher(model, 40)
    assert batcher.submit(images(3)).result(20) == [3]
    batcher.close()
    assert model.passes == [[3]]
    assert sorted(model.limited) == ["sktl-0", "sktl-1"]


def test_bad_images_are_all_named(model, batcher):
    answer = batcher.submit([b"broken", b"fine", b"infinite", b"broken"])
    good = batcher.submit(images(3))
    model.may_run.set()
    found = answer.result(20)
    assert isinstance(found, BadImages)
    reason = "the backbone gives NaN or infinity for it"
    assert found.reasons == {0: "cannot be read", 2: reason, 3: "cannot be read"}
    assert good.result(20) == [3]


def test_others_do_not_suffer_from_a_pass_that_fails(model, batcher):
    answers = [batcher.submit([image]) for image in (b"a", b"poison", b"bc")]
    model.may_run.set()
    assert answers[0].result(20) == [1]
    assert answers[2].result(20) == [2]
    with pytest.raises(ZeroDivisionError):
        answers[1].result(20)


def test_what_goes_wrong_in_decoding_is_answered(model, batcher):
    answers = [batcher.submit([b"bug", b"bug", b"a"]), batcher.submit([b"abc"])]
    model.may_run.set()
    with pytest.raises(ZeroDivisionError):
        answers[0].result(20)
    assert answers[1].result(20) == [3]


def test_bound(model, batcher):
    batcher.submit([b"x"] * 39)
    assert decoded(model, 4 + 39)  # decoded images wait, too
    with pytest.raises(Busy):
        batcher.submit([b"x", b"x"])
    batcher.submit([b"x"])


def test_cancelled_requests_cost_nothing(model):
    model.n_threads = 1
    batcher = Batcher(model, 40)
    first = batcher.submit([b"1234567"] * 4)
    assert model.has_begun.acquire(timeout=20)
    cancelled, kept = batcher.submit([b"cancelled"]), batcher.submit([b"kept"])
    assert cancelled.cancel()
    model.may_run.set()
    assert kept.result(20) == [4]
    batcher.close()
    assert first.result(0) == [7] * 4
    assert b"cancelled" not in model.decoded


def test_images_do_not_wait_for_requests_that_were_given_up(model):
    model.n_threads = 1
    model.may_run.set()
    batcher, given_up, decode = Batcher(model, 40), [], model.prepare

    def prepare(image):
        given_up.append(batcher.submit([b"given up"]))
        assert given_up[-1].cancel()
        return decode(image)

    model.prepare = prepare
    kept = batcher.submit([b"kept"])
    try:
        assert kept.result(20) == [4]
    finally:
        batcher.close()


def test_end(model, batcher):
    answer = batcher.submit([b"last"])
    model.may_run.set()
    batcher.close()
    assert answer.result(0) == [4]
    with pytest.raises(Busy):
        batcher.submit([b"too late"])


def test_models_that_cannot_be_taken_apart_answer_request_by_request(model):
    model.shares_passes = False
    batcher = Batcher(model, 40)
    answers = [batcher.submit(each) for each in (images(1, 2), [b"bug"], images(3))]
    assert answers[0].result(20) == [1, 2]
    assert answers[2].result(20) == [3]
    with pytest.raises(ZeroDivisionError):
        answers[1].result(20)
    batcher.close()
    assert model.passes == model.decoded == []
