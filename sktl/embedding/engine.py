"""Rows in, embeddings out.

The calling thread plans: it reads rows ahead in small windows, asks the stores for them, and forms batches of what they
lack. A pool of threads, which lives as long as the call, does the work: it reads and hashes, decodes into the slots of a
batch, and the thread that fills the last slot runs the network on it. On a CPU every such pass computes on its own core
with one thread, so that cores never wait for each other and decoding takes exactly the cores that computing leaves.

A batch always has the same shape, filled up with zeros: neither the neighbours of a row nor their number can then change
a bit of its embedding.
"""

import hashlib
import json
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from sktl.embedding import _threads
from sktl.embedding._batches import Batch, BufferPool, Item, chunks
from sktl.embedding.policy import resolve_device, resolve_dtype
from sktl.embedding.runtime import get_runner, resolve_runtime
from sktl.exceptions import BadRow
from sktl.inputs import ImagePreprocessor, RowError, raise_bad_rows

# Raised whenever a change makes the same row give other numbers; stored rows of older versions are then not found.
EMBEDDING_VERSION = 1
# More rows per pass gain nothing on one core (the activations outgrow its cache) and cost a lone row its padding.
_CPU_BATCH = 8
_GPU_BATCH = 256
# Rows whose bytes are held at once while the stores are asked for them; two windows are under way.
_WINDOW = 32
_GROUP = 8


@dataclass
class EmbeddingStats:
    """What a call of :func:`embed_with_stats` did.

    Attributes
    ----------
    rows : int
        Rows asked for.

    computed : int
        Rows that went through the network, duplicates counted once.

    from_stores : int
        Rows that a store held.

    batches : int
        Forward passes, padded ones counted whole.

    halvings : int
        How often the batch was halved for lack of memory.
    """

    rows: int = 0
    computed: int = 0
    from_stores: int = 0
    batches: int = 0
    halvings: int = 0


class Plan(NamedTuple):
    """How to compute, all "auto" resolved."""

    device: torch.device
    dtype: torch.dtype
    runtime: str
    batch_size: int
    n_threads: int
    lanes: int


def embed(
    rows,
    view,
    *,
    device="auto",
    dtype="auto",
    batch_size="auto",
    n_threads=None,
    runtime="auto",
    stores=(),
    on_error="raise",
    verbose=0,
):
    """Compute the embedding of each row.

    Parameters
    ----------
    rows : Rows
        A sequence with ``label(i)``, whose items have a ``digest`` and either ``pixels()`` (uint8 RGB, preprocessed here as
        the backbone asks) or ``model_input()`` (float32, already normalised).

    view : FeatureView
        The network as ``module`` with ``data_config``, ``width`` and ``key``. It is never changed.

    device : {"auto"}, str or torch.device, default="auto"
        Where to compute; "auto" takes CUDA, MPS or the CPU, in this order.

    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Precision of the network; "auto" takes bfloat16 where it is native, else float32.

    batch_size : int or "auto", default="auto"
        Rows per forward pass, each pass filled up to this number; "auto" takes 8 on a CPU, where every core runs its own
        pass, and 256 on a GPU. A pass that does not fit into memory is repeated in halves.

    n_threads : int or None, default=None
        Threads that decode (and, on a CPU, compute); None takes as many as torch would use.

    runtime : {"auto", "torch", "compile", "openvino"}, default="auto"
        What runs the network; "auto" takes OpenVINO on a CPU if it is installed, else torch.

    stores : sequence of store, default=()
        Asked in turn for each row before it is computed; what an earlier one lacks it is given.

    on_error : {"raise", "nan"}, default="raise"
        Whether rows that cannot be embedded raise one error that names them all, or become rows of NaN.

    verbose : int, default=0
        From 1 on, a progress bar is shown.

    Returns
    -------
    embeddings : ndarray of shape (len(rows), view.width), dtype float32
        One row per row.
    """
    return embed_with_stats(
        rows,
        view,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        n_threads=n_threads,
        runtime=runtime,
        stores=stores,
        on_error=on_error,
        verbose=verbose,
    )[0]


def embed_with_stats(rows, view, *, stores=(), on_error="raise", verbose=0, **policy):
    """Compute embeddings as :func:`embed` does, and say what it took.

    Returns
    -------
    embeddings : ndarray of shape (len(rows), view.width), dtype float32
        One row per row.

    stats : EmbeddingStats
        Counts of rows and passes.
    """
    if on_error not in ("raise", "nan"):
        raise ValueError(f"The 'on_error' parameter must be 'raise' or 'nan', got {on_error!r} instead.")
    run = _Run(rows, view, make_plan(**policy), stores, on_error)
    with tqdm(total=len(rows), disable=verbose < 1, desc="embedding", unit="row") as bar:
        return run.result(bar), run.stats


def make_plan(device="auto", dtype="auto", batch_size="auto", n_threads=None, runtime="auto"):
    """Resolve all policies; see :func:`embed` for the parameters."""
    device = resolve_device(device)
    cores = _threads.usable_cores()
    on_cpu = device.type == "cpu"
    if isinstance(batch_size, str) and batch_size == "auto":
        batch_size = _CPU_BATCH if on_cpu else _GPU_BATCH
    for name, value in (("batch_size", batch_size), ("n_threads", 1 if n_threads is None else n_threads)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"The {name!r} parameter must be an int in the range [1, inf), got {value!r} instead.")
    n_threads = cores if n_threads is None else int(n_threads)
    return Plan(
        device=device,
        dtype=resolve_dtype(dtype, device),
        runtime=resolve_runtime(runtime, device),
        batch_size=int(batch_size),
        n_threads=n_threads,
        lanes=min(n_threads, _threads.cpu_lanes(cores)) if on_cpu else 1,
    )


def namespace_of(view, plan, input_config):
    """The part of a stored row's key that says how it was computed."""
    how = {
        "view": view.key,
        "input": input_config,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "runtime": plan.runtime,
        "version": EMBEDDING_VERSION,
    }
    return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()


@dataclass
class _Run:
    """One call of embed: its result so far, and what is under way."""

    rows: object
    view: object
    plan: Plan
    stores: tuple
    on_error: str
    stats: EmbeddingStats = field(init=False)

    def __post_init__(self):
        n_rows, plan = len(self.rows), self.plan
        self.stats = EmbeddingStats(rows=n_rows)
        self.out = np.full((n_rows, self.view.width), np.nan, dtype=np.float32)
        self.bad = {}
        self.first_of = {}
        self.copies = []
        self.pending = []
        self.in_flight = {}
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.lanes = threading.Semaphore(plan.lanes)
        self.group = max(1, min(_GROUP, -(-plan.batch_size // plan.n_threads)))
        self.look_ahead = plan.lanes + 1 + -(-2 * plan.n_threads * self.group // plan.batch_size)
        self.buffers = BufferPool(plan.batch_size, pin=plan.device.type == "cuda")
        self.preprocess = self.namespace = self._runner = None

    # The calling thread ------------------------------------------------------------------------------------------------

    def result(self, bar):
        """Run to the end."""
        self.bar = bar
        self.pool = ThreadPoolExecutor(self.plan.n_threads, "sktl-embed", _threads.start_lane, (self.plan.device,))
        try:
            for window in self._windows():
                self.pending.extend(self._look_up(window))
                while len(self.pending) >= self.plan.batch_size:
                    self._dispatch()
            if self.pending:
                self._dispatch()
            self._harvest(down_to=0)
        finally:
            self.stop.set()
            self.pool.shutdown(wait=True, cancel_futures=True)
        return self._finish()

    def _windows(self):
        """Rows read and hashed by the threads, a window ahead of what the caller works on."""
        previous = None
        for indices in chunks(range(len(self.rows)), _WINDOW):
            following = [
                self.pool.submit(self._read, part) for part in chunks(indices, max(1, _WINDOW // self.plan.n_threads))
            ]
            if previous:
                yield [item for part in previous for item in part.result()]
            previous = following
        if previous:
            yield [item for part in previous for item in part.result()]

    def _look_up(self, items):
        """Take from the stores what they have; the rest, without duplicates, is to be computed."""
        new = []
        for item in items:
            first = self.first_of.setdefault(item.digest, item.index)
            if first == item.index:
                new.append(item)
            else:
                self.copies.append((item.index, first))
                self.bar.update()
        if not new or not self.stores:
            return new
        if self.namespace is None:
            self.namespace = namespace_of(self.view, self.plan, self._input_config(new[0].row))
        known = self._from_stores([item.digest for item in new])
        for item in new:
            if item.digest in known:
                self.out[item.index] = known[item.digest]
        self.stats.from_stores += len(known)
        self.bar.update(len(known))
        return [item for item in new if item.digest not in known]

    def _from_stores(self, digests):
        known = {}
        for position, store in enumerate(self.stores):
            found = store.get_many(self.namespace, [digest for digest in digests if digest not in known])
            for earlier in self.stores[:position] if found else ():
                earlier.put_many(self.namespace, found)
            known |= found
        return known

    def _dispatch(self):
        """Hand the next batch to the threads, once there is room for it."""
        self._harvest(down_to=self.look_ahead - 1)
        items, self.pending = self.pending[: self.plan.batch_size], self.pending[self.plan.batch_size :]
        if self.preprocess is None and not hasattr(items[0].row, "model_input"):
            self.preprocess = ImagePreprocessor(self.view.data_config)
        batch = Batch(items, self.group, self.buffers)
        self.in_flight[batch.done] = batch
        for slots in batch.groups:
            self.pool.submit(self._decode, batch, slots)

    def _harvest(self, down_to):
        """Wait until at most `down_to` batches are under way; keep what the others gave."""
        while len(self.in_flight) > down_to:
            for done in wait(self.in_flight, return_when=FIRST_COMPLETED).done:
                batch = self.in_flight.pop(done)
                rows = done.result()
                for store in self.stores if rows else ():
                    store.put_many(self.namespace, rows)
                self.bar.update(len(batch.items))
                batch.release()

    def _finish(self):
        for index, first in self.copies:
            self.out[index] = self.out[first]
            if first in self.bad:
                self.bad[index] = self.bad[first]
        if self.bad and self.on_error == "raise":
            raise_bad_rows([BadRow(i, self.rows.label(i), reason) for i, reason in sorted(self.bad.items())])
        return self.out

    def _input_config(self, row):
        return "model_input" if hasattr(row, "model_input") else ImagePreprocessor(self.view.data_config).config

    # The threads of the pool -------------------------------------------------------------------------------------------

    def _read(self, indices):
        """Read and hash rows; what cannot be read is a bad row."""
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
        except BaseException as error:
            if not batch.done.done():
                batch.done.set_exception(error)

    def _fill(self, batch, slot):
        row = batch.items[slot].row
        try:
            batch.fill(slot, row.model_input() if self.preprocess is None else self.preprocess(row.pixels()))
        except RowError as error:
            batch.fail(slot, str(error))
            self.bad[batch.items[slot].index] = str(error)

    def _compute(self, batch):
        """Run the network on a filled batch; the good rows by digest."""
        slots = batch.good_slots()
        if not slots or (self.bad and self.on_error == "raise"):
            return {}
        values = self._forward(batch.padded())[slots]
        rows = {}
        for slot, row in zip(slots, values, strict=True):
            item = batch.items[slot]
            self.out[item.index] = row
            rows[item.digest] = self.out[item.index]
        with self.lock:
            self.stats.computed += len(slots)
            self.stats.batches += 1
        return rows

    def _forward(self, inputs):
        runner = self._get_runner()
        with self.lanes, torch.inference_mode():
            output = runner(inputs)
        return output.cpu().numpy()

    def _get_runner(self):
        with self.lock:
            if self._runner is None:
                self._runner = get_runner(self.view, self.plan.device, self.plan.dtype, self.plan.runtime)
            return self._runner
