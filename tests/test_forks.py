"""A forked child and the locks that threads of its parent hold: it finds them open."""

import gc
import io
import os
import signal
import threading

import numpy as np
import pytest
from PIL import Image

from sktl import _random
from sktl._forks import ForkSafeLock, follow_forks
from sktl.backbones import _backbone, _load, load_backbone
from sktl.embedding import MemoryStore, default_store
from sktl.embedding.runtime import _RUNNERS
from sktl.inputs import _decode, _files, _rows, open_rows

# Python warns of a fork beside other threads, which torch has.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform does not fork"),
]

OWN_STORE = MemoryStore()
LOCKS = {
    "shared backbones": lambda: _load._shared._lock(),
    "pickled backbones": lambda: _backbone._building(),
    "file objects": lambda: _files._stream_lock(),
    "digests of files": lambda: _rows._file_digests._lock(),
    "digests of pixels": lambda: _rows._pixel_digests._lock(),
    "one image": lambda: _decode._image_locks[7](),
    "random numbers": lambda: _random._ONE_AT_A_TIME(),
    "rows in memory": lambda: default_store()._lock,
    "rows in a store of one's own": lambda: OWN_STORE._lock,
    "prepared networks": lambda: _RUNNERS._lock,
}


def ends_in_child(work):
    """Whether a forked child gets through some work; one that hangs is killed."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def while_another_thread_holds(lock, work):
    """Run work in a child that is forked while a thread of this process is inside the lock."""
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with lock:
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    try:
        return ends_in_child(work)
    finally:
        leave.set()
        thread.join()


@pytest.mark.parametrize("name", LOCKS)
def test_locks_are_open_in_a_child(name):
    def enter():
        os._exit(0 if LOCKS[name]().acquire(timeout=1) else 1)

    assert while_another_thread_holds(LOCKS[name](), enter)


def test_a_child_loads_backbones_while_its_parent_loads_one():
    load_backbone("sktl/tiny", image_size=32)
    assert while_another_thread_holds(_load._shared._lock(), lambda: load_backbone("sktl/tiny", image_size=32))


def test_a_child_reads_images_while_its_parent_does():
    image = Image.new("RGB", (8, 8))
    stream = io.BytesIO()
    image.save(stream, "png")
    rows = open_rows([image, stream])
    lock = _decode._image_locks[id(image) // 16 % len(_decode._image_locks)]
    with _files._stream_lock():
        assert while_another_thread_holds(lock(), lambda: [rows[i].digest + rows[i].pixels().tobytes() for i in (0, 1)])


def test_who_forks_inside_a_lock_leaves_it_in_parent_and_child():
    lock = ForkSafeLock()

    def work():
        with lock():
            pass

    with lock():
        pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        work()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    work()


def test_what_is_gone_follows_no_fork():
    class Holder:
        def start_anew(self):
            os._exit(3)

    holder = Holder()
    follow_forks(holder)
    assert not ends_in_child(lambda: None)
    del holder
    gc.collect()
    assert ends_in_child(lambda: None)


def test_rows_that_a_store_holds_are_kept_in_the_child():
    store = MemoryStore()
    store.put_many("00", {b"1": np.ones(2)})
    assert ends_in_child(lambda: np.testing.assert_array_equal(store.get_many("00", [b"1"])[b"1"], [1, 1]))
