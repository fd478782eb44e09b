"""Does a search leave memory behind for each candidate?

Resident memory of a process after ``GridSearchCV`` over one candidate, and of another after twelve, on the digits, with
a strategy that trains the whole network. What the allocator holds for later is given back before it is read::

    python docs/benchmarks/search_memory.py --candidates 1 12
"""

import argparse
import ctypes
import gc
import multiprocessing
import os

from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from sktl import FineTuneClassifier


def resident_mebibytes():
    """Return the memory that the process holds."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def search(options, n_candidates, sender):
    """Search over weight decays, and send the memory before and after."""
    X, y = (part[: options.rows] for part in load_digits(return_X_y=True))
    model = FineTuneClassifier(
        options.backbone,
        options.strategy,
        weights=options.weights,
        image_shape=(8, 8),
        image_size=options.size,
        max_epochs=1,
        random_state=0,
    )
    before = resident_mebibytes()
    grid = {"weight_decay": [0.01 * (number + 1) for number in range(n_candidates)]}
    fitted = GridSearchCV(model, grid, cv=2, error_score="raise").fit(X, y)
    sender.send((before, resident_mebibytes()))
    del fitted


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 12])
    parser.add_argument("--strategy", default="fine_tuning")
    parser.add_argument("--backbone", default="sktl/tiny")
    parser.add_argument("--weights", default="pretrained", help="none for random ones")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--size", type=int, default=32)
    options = parser.parse_args()
    options.weights = None if options.weights == "none" else options.weights
    context = multiprocessing.get_context("spawn")
    for n_candidates in options.candidates:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=search, args=(options, n_candidates, sender))
        child.start()
        before, after = receiver.recv()
        child.join()
        print(f"{n_candidates:3} candidates: {before:.0f} MiB before, {after:.0f} MiB after", flush=True)


if __name__ == "__main__":
    main()
