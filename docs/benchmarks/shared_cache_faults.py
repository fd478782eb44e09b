"""Does the store for many machines ever serve a wrong row, while its writers are killed?

Eight processes read and write rows of one ``ObjectStore``, in random order and small shards; every now and then one of
them is killed (SIGKILL) and another started in its place. Each compares every row that it finds with what the row has
to be, and so does a fresh process in the end, over all rows::

    python docs/benchmarks/shared_cache_faults.py --kills 100

The URL may be any that fsspec knows; a temporary folder is the default. At the end, Python's resource tracker may
complain of semaphores: they belonged to what was killed. The exit status is 1 if a row was wrong or anything was raised
or warned.
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
import warnings

import numpy as np

from sktl.embedding import ObjectFolder, ObjectStore

CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
PRELOADED = ["sktl.embedding"]
NAMESPACE = "5e" * 32
WIDTH = 512
WINDOW = 32
PATIENCE = 300


def expected(numbers):
    """Return rows that show by their values whether they are whole and whose they are."""
    return {k.to_bytes(32, "big"): np.random.default_rng(k).standard_normal(WIDTH, dtype=np.float32) for k in numbers}


def wrong_rows(store, numbers):
    """Return how many rows are found, and how many of them are not what they have to be."""
    rows = expected(numbers)
    found = store.get_many(NAMESPACE, list(rows))
    return len(found), sum(not np.array_equal(row, rows[key]) for key, row in found.items())


def write(url, n_rows, seed, counts, errors):
    """Read and write rows until killed; count those found and those wrong."""
    try:
        warnings.simplefilter("error")
        order = random.Random(seed)
        store = ObjectStore(url, shard_bytes=64 * 4 * WIDTH, refresh_seconds=0.2)
        while True:
            numbers = order.sample(range(n_rows), WINDOW)
            n_found, n_wrong = wrong_rows(store, numbers)
            with counts.get_lock():
                counts[0] += n_found
                counts[1] += n_wrong
            store.put_many(NAMESPACE, expected(numbers[: order.randint(1, WINDOW)]))
    except BaseException:
        errors.put(traceback.format_exc())


def start(url, n_rows, seed, counts, errors):
    process = CONTEXT.Process(target=write, args=(url, n_rows, seed, counts, errors), daemon=True)
    process.start()
    return process


def try_kills(url, options):
    """Keep so many writers at work, killing one of them at random moments; return rows read, wrong ones and errors."""
    counts, errors = CONTEXT.Array("q", 2), CONTEXT.SimpleQueue()
    moments = random.Random(options.seed)
    writers = [start(url, options.rows, seed, counts, errors) for seed in range(options.writers)]
    try:
        until = time.monotonic() + PATIENCE
        while counts[0] == 0 and errors.empty() and time.monotonic() < until:
            time.sleep(0.05)
        for number in range(options.kills):
            time.sleep(moments.uniform(0, 2 * options.pause))
            place = moments.randrange(len(writers))
            writers[place].kill()
            writers[place].join(PATIENCE)
            writers[place] = start(url, options.rows, options.writers + number, counts, errors)
    finally:
        for writer in writers:
            writer.kill()
        for writer in writers:
            writer.join(PATIENCE)
    said = []
    while not errors.empty():
        said.append(errors.get())
    return counts[0], counts[1], said


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="where the store is (default: a temporary folder)")
    parser.add_argument("--writers", type=int, default=8, help="processes at work (default: 8)")
    parser.add_argument("--kills", type=int, default=10, help="processes to kill (default: 10)")
    parser.add_argument("--rows", type=int, default=20_000, help="different rows (default: 20000)")
    parser.add_argument("--pause", type=float, default=0.3, help="mean seconds between kills (default: 0.3)")
    parser.add_argument("--seed", type=int, default=0, help="start of the random moments (default: 0)")
    options = parser.parse_args()
    if CONTEXT.get_start_method() == "forkserver":
        CONTEXT.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory(prefix="sktl-shared-") as folder:
        url = options.url or folder
        n_read, n_wrong, errors = try_kills(url, options)
        print(*errors, sep="\n", end="")
        print(f"{options.writers} writers, {options.kills} kills: {n_read:,} rows read, {n_wrong} wrong rows,", end=" ")
        print(f"{len(errors)} errors")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            n_found, n_wrong_after = wrong_rows(ObjectStore(url), range(options.rows))
        shards = ObjectFolder(f"{url}/sktl-embeddings-v1/{NAMESPACE}").sizes()
        print(f"afterwards: {n_found:,} of {options.rows:,} rows in {len(shards):,} shards, {n_wrong_after} wrong rows")
    return int(n_wrong + n_wrong_after + len(errors) > 0 or n_found == 0)


if __name__ == "__main__":
    sys.exit(main())
