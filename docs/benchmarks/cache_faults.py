"""Does the store on disk ever serve a wrong row, whoever is killed and whoever writes beside?

Two trials, on generated pictures and a small network with random weights::

    python docs/benchmarks/cache_faults.py --kills 100 --images 2000

First, a process that fills the store through ``PretrainedFeatureTransformer(memory=folder).transform`` is killed
(SIGKILL) at a random moment, and another process embeds the same pictures with what the first has left; then the
next process is killed in a new folder. Every row has to be equal, to the last bit, to what is computed without a
store, and no error or warning may come. Second, several processes embed the same pictures with one store at the same
time: they should share the work, and compute few rows twice.

At the end, Python's resource tracker may complain of semaphores: they belonged to what was killed. The exit status is 1
if a row was wrong, anything was raised or warned, or more than 5 % was computed twice.
"""

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
import traceback
import warnings

import numpy as np

from sktl import PretrainedFeatureTransformer
from sktl.embedding import DiskStore, MemoryStore, embed_with_stats
from sktl.inputs import open_rows

# Children start from a process that has imported all this and done nothing else: quickly, and no lock held.
CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
PRELOADED = ["sktl.transformer", "timm.models"]
MAX_SHARE = 1.05
PATIENCE = 600


def make_pictures(n_images, size=32):
    """Noise: no two are equal."""
    return np.random.default_rng(0).integers(0, 256, (n_images, size, size, 3), dtype=np.uint8)


def make_transformer(size=32):
    return PretrainedFeatureTransformer("test_resnet", weights=None, image_size=size, cache_bytes=0, device="cpu")


def embed_in_child(sender, work, *arguments):
    """Send what the work gives, or what it raised or warned of."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sender.send(("done", work(*arguments)))
    except BaseException:
        sender.send(("error", traceback.format_exc()))


def in_child(work, *arguments):
    """Start the work in a new process; give the process, and the end of the pipe that its answer comes from."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=embed_in_child, args=(sender, work, *arguments))
    process.start()
    sender.close()
    return process, receiver


def answer_of(process, receiver):
    """Wait for the answer of a child."""
    answer = receiver.recv() if receiver.poll(PATIENCE) else ("error", f"no answer for {PATIENCE} seconds")
    process.join(10)
    return answer


def embed_plainly(n_images):
    """Embed without a store; give the rows, and the seconds that it takes to fill one."""
    pictures = make_pictures(n_images)
    transformer = make_transformer().fit(pictures)
    embeddings = transformer.transform(pictures)
    with tempfile.TemporaryDirectory(prefix="sktl-faults-") as folder:
        transformer.set_params(memory=folder)
        start = time.perf_counter()
        transformer.transform(pictures)
        return embeddings, time.perf_counter() - start


def embed_to_be_killed(n_images, folder, ready):
    pictures = make_pictures(n_images)
    transformer = make_transformer().fit(pictures)
    transformer.transform(pictures[:1])  # prepares the network
    ready.set()
    transformer.set_params(memory=folder).transform(pictures)


def embed_with_store(n_images, folder, barrier=None):
    """Embed with the store on disk; give the rows, and how many were computed and found."""
    pictures = make_pictures(n_images)
    view = make_transformer().fit(pictures).backbone_.view
    if barrier is not None:
        barrier.wait(PATIENCE)
    stores = [MemoryStore(), DiskStore(folder)]
    embeddings, stats = embed_with_stats(open_rows(pictures), view, stores=stores, device="cpu")
    return embeddings, stats.computed, stats.from_stores


def count_wrong(embeddings, expected):
    return int((embeddings != expected).any(axis=1).sum())


def kill_once(n_images, delay, expected):
    """Kill one process; give how many rows it left, how many of all rows are wrong then, and errors."""
    with tempfile.TemporaryDirectory(prefix="sktl-faults-") as folder:
        ready = CONTEXT.Event()
        process, receiver = in_child(embed_to_be_killed, n_images, folder, ready)
        if not ready.wait(PATIENCE):
            return 0, 0, ["the process to be killed did not start"]
        time.sleep(delay)
        process.kill()
        process.join()
        receiver.close()
        kind, answer = answer_of(*in_child(embed_with_store, n_images, folder))
        if kind == "error":
            return 0, 0, [answer]
        embeddings, _, n_left = answer
        return n_left, count_wrong(embeddings, expected), []


def try_kills(n_kills, n_images, expected, seconds, seed):
    """Kill processes at random moments; give the numbers of wrong rows and of errors."""
    moments, left, n_wrong, errors = random.Random(seed), [], 0, []
    for number in range(n_kills):
        delay = moments.uniform(0, 1.1 * seconds)
        n_left, wrong, new_errors = kill_once(n_images, delay, expected)
        left.append(n_left)
        n_wrong += wrong
        errors += new_errors
        for error in new_errors:
            print(f"kill {number} (seed {seed}, after {delay:.3f} s): {error}", flush=True)
    quarters = statistics.quantiles(left, n=4) if len(left) > 1 else left
    print(f"{n_kills} kills: {n_wrong} wrong rows, {len(errors)} errors afterwards")
    print(f"  rows left behind, quartiles: {[round(value) for value in quarters]} of {n_images}")
    print(f"  killed before any row was stored: {left.count(0)}; in between: {sum(0 < n < n_images for n in left)}")
    return n_wrong, len(errors)


def try_crowd(n_processes, n_images, expected):
    """Let processes embed the same pictures at once; give wrong rows, errors, and rows computed per picture."""
    with tempfile.TemporaryDirectory(prefix="sktl-faults-") as folder:
        barrier = CONTEXT.Barrier(n_processes)
        children = [in_child(embed_with_store, n_images, folder, barrier) for _ in range(n_processes)]
        answers = [answer_of(*child) for child in children]
    errors = [answer for kind, answer in answers if kind == "error"]
    print(*errors, sep="\n", end="")
    results = [answer for kind, answer in answers if kind == "done"]
    n_wrong = sum(count_wrong(embeddings, expected) for embeddings, _, _ in results)
    computed = [count for _, count, _ in results]
    share = sum(computed) / n_images
    print(f"{n_processes} processes on one store: {n_wrong} wrong rows, {len(errors)} errors")
    print(f"  computed: {sum(computed)} rows for {n_images} pictures ({share:.3f} n), by process: {computed}")
    return n_wrong, len(errors), share


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="processes to kill (default: 10)")
    parser.add_argument("--processes", type=int, default=8, help="processes on one store (default: 8)")
    parser.add_argument("--images", type=int, default=400, help="pictures to embed (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="start of the random moments (default: 0)")
    options = parser.parse_args()
    if CONTEXT.get_start_method() == "forkserver":
        CONTEXT.set_forkserver_preload(PRELOADED)
    kind, answer = answer_of(*in_child(embed_plainly, options.images))
    if kind == "error":
        print(answer)
        return 1
    expected, seconds = answer
    print(f"{options.images} pictures into an empty store: {seconds:.2f} s", flush=True)
    wrong, errors = try_kills(options.kills, options.images, expected, seconds, options.seed)
    wrong_in_crowd, errors_in_crowd, share = try_crowd(options.processes, options.images, expected)
    return int(wrong + wrong_in_crowd + errors + errors_in_crowd > 0 or share > MAX_SHARE)


if __name__ == "__main__":
    sys.exit(main())
