"""Does a fit that is killed go on to the very weights of one that never stopped?

A fit with ``checkpoint=`` is run in processes that are killed after a random time, until one of them comes to its end;
its weights are compared with those of an unbroken fit, bit by bit. POSIX only::

    python docs/benchmarks/training_faults.py --kills 20
"""

import argparse
import hashlib
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from sklearn.datasets import load_digits

from sktl import FineTuneClassifier


def fit(checkpoint, epochs):
    """Fit on digits with all that has a state, and return a hash of the weights."""
    X, y = load_digits(return_X_y=True)
    model = FineTuneClassifier(
        strategy="lp_ft",
        image_shape=(8, 8),
        image_size=32,
        max_epochs=epochs,
        early_stopping=True,
        n_iter_no_change=epochs,
        augment="rand-m5",
        mixup=0.2,
        ema_decay=0.9,
        checkpoint=checkpoint,
        random_state=0,
    ).fit(X[:200], y[:200])
    digest = hashlib.sha256()
    for _, value in sorted(model.net_.module_.state_dict().items()):
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def run(checkpoint, output, epochs, seconds=None):
    """Fit in a child that is killed after some seconds; return whether it came to its end."""
    pid = os.fork()
    if pid == 0:
        Path(output).write_text(fit(checkpoint, epochs))
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1] == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        output = os.path.join(folder, "hash.txt")
        started = time.perf_counter()
        assert run(None, output, arguments.epochs), "the unbroken fit failed"
        whole, expected = time.perf_counter() - started, Path(output).read_text()
        kills = fits = equal = 0
        while kills < arguments.kills:
            checkpoint = os.path.join(folder, f"fit{fits}")
            while kills < arguments.kills and not run(checkpoint, output, arguments.epochs, rng.uniform(0, whole)):
                kills += 1
            assert run(checkpoint, output, arguments.epochs), "a fit could not go on"
            fits += 1
            equal += Path(output).read_text() == expected
    print(f"{kills} kills in {fits} fits; {equal} of {fits} ended with the very weights of the unbroken fit.")


if __name__ == "__main__":
    main()
