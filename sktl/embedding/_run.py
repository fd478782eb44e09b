"""One call of ``embed``: who does what, and when.

The calling thread plans. It has rows read ahead in small windows, asks the stores for them, and forms batches of what
they lack. A pool of threads, which lives as long as the call, works: it reads and hashes, decodes into the slots of a
batch, and the thread that fills the last slot runs the network on it. On a CPU each such pass computes on its own core
with one thread, so that cores never wait for each other, and decoding takes exactly the cores that computing leaves.

A batch always has the same shape, filled up with zeros: neither the neighbours of a row nor their number can then
change a bit of its embedding. Texts, which are padded to one of a few lengths, form batches with texts of their own
length, and each length has a shape of its own.
"""

import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np

from sktl.embedding._batches import Batch, BufferPool, Item, chunks
from sktl.embedding.passes import NOT_FINITE, Passes
from sktl.embedding.store import Shelf
from sktl.exceptions import BadRow
from sktl.inputs import RowError, raise_bad_rows

# Rows whose bytes are held at once while the stores are asked for them; two windows are under way.
_WINDOW = 32
# Rows per decoding task: long enough to hide what a task costs, short enough to share a batch among threads.
_GROUP = 8
_POLL_SECONDS = 0.05


@dataclass
class EmbeddingStats:
    """What a call did.

    Attributes
    ----------
    rows : int
        Rows asked for.

    computed : int
        Rows that went through the network, duplicates counted once.

    from_stores : int
        Rows that a store held.

    batches : int
        Batches that went through the network.

    halvings : int
        How often the batch was halved for lack of memory.

    digests : list of bytes or None
        What each row was computed from; None where it could not be read.

    bad : list of BadRow
        Rows that became NaN, and why.
    """

    rows: int = 0
    computed: int = 0
    from_stores: int = 0
    batches: int = 0
    halvings: int = 0
    digests: list = field(default_factory=list, repr=False)
    bad: list = field(default_factory=list, repr=False)


class Run:
    """The state of one call.

    Parameters
    ----------
    rows, view, stores
        As for :func:`sktl.embedding.embed`.

    plan : Plan
        How to compute.

    skip_bad : bool
        Whether bad rows become NaN; otherwise nothing is computed once one is known.

    stats : EmbeddingStats
        Is counted up.

    progress : callable
        Told how many rows are done.
    """

    def __init__(self, rows, view, plan, *, stores, skip_bad, stats, progress):
        self.rows, self.view, self.plan, self.stores = rows, view, plan, stores
        self.skip_bad, self.stats, self.progress = skip_bad, stats, progress
        stats.digests = [None] * len(rows)
        self.out = np.full((len(rows), view.width), np.nan, dtype=np.float32)
        self.passes = Passes(view, plan)
        self.shelf = None
        self.bad = {}  # index -> reason
        self.first_of = {}  # digest -> index of the first row that has it
        self.copies = []  # (index, index of the first row with the same content)
        self.pending = {}  # length of a row's input, None for images -> items that wait for a full batch
        self.left_to_others = {}  # digest -> index of a row that another process computes
        self.in_flight = {}
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.group = max(1, min(_GROUP, -(-plan.batch_size // plan.n_threads)))
        self.look_ahead = plan.lanes + 1 + -(-2 * plan.n_threads * self.group // plan.batch_size)
        self.buffers = {}  # rows per pass -> BufferPool

    # The calling thread ---------------------------------------------------------------------------------------------

    def result(self):
        """Do it all.

        Returns
        -------
        embeddings : ndarray of shape (n_rows, width), dtype float32
            In the order of the rows.
        """
        self.pool = ThreadPoolExecutor(self.plan.n_threads, "sktl-embed", self.passes.limit_thread)
        try:
            for window in self._windows():
                self._schedule(self._look_up(self._without_copies(window)))
            self._flush()
            self._wait_for_others()
        finally:
            self.stop.set()
            self.pool.shutdown(wait=True, cancel_futures=True)
            if self.shelf is not None:
                self.shelf.close()
        return self._finish()

    def _windows(self):
        """Rows read and hashed by the threads, a window ahead of what the caller works on."""
        previous = []
        part = max(1, _WINDOW // self.plan.n_threads)
        for indices in chunks(range(len(self.rows)), _WINDOW):
            following = [self.pool.submit(self._read, few) for few in chunks(indices, part)]
            yield [item for few in previous for item in few.result()]
            previous = following
        yield [item for few in previous for item in few.result()]

    def _without_copies(self, items):
        """Rows whose content did not come before."""
        new = []
        for item in items:
            self.stats.digests[item.index] = item.digest
            first = self.first_of.setdefault(item.digest, item.index)
            if first == item.index:
                new.append(item)
            else:
                self.copies.append((item.index, first))
        self.progress(len(items) - len(new))
        return new

    def _look_up(self, items):
        """Take from the stores what they have; the rest is to be computed, here or by the process that is at it."""
        if not items or not self.stores:
            return items
        if self.shelf is None:
            input_config = "model_input" if _is_prepared(items[0].row) else self.passes.preprocess.config
            self.shelf = Shelf(self.stores, self.plan.namespace(self.view, input_config))
        known = self._take({item.digest: item.index for item in items})
        missing = [item for item in items if item.digest not in known]
        taken = self.shelf.claim([item.digest for item in missing]) if missing else ()
        self.left_to_others.update({item.digest: item.index for item in missing if item.digest in taken})
        return [item for item in missing if item.digest not in taken]

    def _take(self, index_of):
        """Fill in the rows that the stores have, given the index of each digest."""
        known = self.shelf.get(list(index_of))
        for digest, row in known.items():
            self.out[index_of[digest]] = row
        self.stats.from_stores += len(known)
        self.progress(len(known))
        return known

    def _wait_for_others(self):
        """Fill in what other processes computed; take over what they gave up."""
        while self.left_to_others:
            for digest in self._take(self.left_to_others):
                del self.left_to_others[digest]
            taken = () if self._is_lost() else self.shelf.claim(list(self.left_to_others))
            orphans = [index for digest, index in self.left_to_others.items() if digest not in taken]
            self.left_to_others = {digest: i for digest, i in self.left_to_others.items() if digest in taken}
            for few in chunks(orphans, _WINDOW):
                self._schedule(self.pool.submit(self._read, few).result())
            self._flush()
            if self.left_to_others and not orphans:
                time.sleep(_POLL_SECONDS)

    def _schedule(self, items):
        """Compute rows, as soon as they fill a batch."""
        for item in items:
            length = getattr(item.row, "length", None)
            waiting = self.pending.setdefault(length, [])
            waiting.append(item)
            if len(waiting) == self.plan.rows_per_pass(length):
                self._dispatch(length)

    def _flush(self):
        """Compute what is left, and wait for all."""
        for length in list(self.pending):
            self._dispatch(length)
        self._harvest(down_to=0)

    def _dispatch(self, length):
        """Hand the rows of one length to the threads as a batch, once there is room for it."""
        self._harvest(down_to=self.look_ahead - 1)
        capacity = self.plan.rows_per_pass(length)
        if capacity not in self.buffers:
            self.buffers[capacity] = BufferPool(capacity, pin=self.plan.device.type == "cuda")
        batch = Batch(self.pending.pop(length), self.group, self.buffers[capacity])
        self.in_flight[batch.done] = batch
        for slots in batch.groups:
            self.pool.submit(self._decode, batch, slots)

    def _harvest(self, down_to):
        """Wait until at most `down_to` batches are under way; keep what the others gave."""
        while len(self.in_flight) > down_to:
            for done in wait(self.in_flight, return_when=FIRST_COMPLETED).done:
                batch = self.in_flight.pop(done)
                computed = done.result()
                if self.shelf is not None:
                    self.shelf.put(computed)
                self.progress(len(batch.items))
                batch.release()

    def _finish(self):
        for index, first in self.copies:
            self.out[index] = self.out[first]
            if first in self.bad:
                self.bad[index] = self.bad[first]
        self.progress(self.stats.digests.count(None))  # rows that could not be read
        self.passes.warn_of_replacement(stacklevel=4)
        self.stats.halvings = self.passes.halvings
        self.stats.bad = [
            BadRow(self.rows.position(i), self.rows.label(i), reason) for i, reason in sorted(self.bad.items())
        ]
        if self._is_lost():
            raise_bad_rows(self.stats.bad, len(self.rows))
        return self.out

    def _is_lost(self):
        """Whether the call will raise: all rows are looked at then, to name all bad ones, but none is computed."""
        return bool(self.bad) and not self.skip_bad

    # The threads of the pool ----------------------------------------------------------------------------------------

    def _read(self, indices):
        """Read and hash rows; one that cannot be read is a bad row."""
        items = []
        for index in indices:
            if self.stop.is_set():
                break
            try:
                row = self.rows[index]
                items.append(Item(index, row.digest, row))
            except RowError as error:
                self.bad[index] = str(error)
        return items

    def _decode(self, batch, slots):
        """Fill some slots of a batch, and run it if they were the last."""
        try:
            for slot in slots:
                if self.stop.is_set():
                    return
                self._fill(batch, slot)
            if batch.finish_group():
                batch.done.set_result(self._compute(batch))
        except BaseException as error:  # raised again where the result is asked for
            batch.set_exception(error)

    def _fill(self, batch, slot):
        row = batch.items[slot].row
        try:
            batch.fill(slot, row.model_input() if _is_prepared(row) else self.passes.preprocess(row.pixels()))
        except RowError as error:
            self._fail(batch, slot, str(error))

    def _fail(self, batch, slot, reason):
        batch.failed.add(slot)
        self.bad[batch.items[slot].index] = reason

    def _compute(self, batch):
        """Run the network on a filled batch.

        Returns
        -------
        computed : dict of bytes to ndarray
            The embeddings of its good rows by digest.
        """
        if not batch.good_slots() or self._is_lost():
            return {}
        values = self.passes(batch.padded(), len(batch.items))
        finite = np.isfinite(values).all(axis=1)
        computed = {}
        for slot in batch.good_slots():
            if not finite[slot]:
                self._fail(batch, slot, NOT_FINITE)
                continue
            item = batch.items[slot]
            self.out[item.index] = values[slot]
            computed[item.digest] = values[slot]
        with self.lock:
            self.stats.computed += len(computed)
            self.stats.batches += 1
        return computed


def _is_prepared(row):
    return hasattr(row, "model_input")
