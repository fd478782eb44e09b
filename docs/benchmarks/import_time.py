"""What does importing sktl cost, against ``import sklearn`` + ``import torch``?

``import sktl`` alone loads nothing; the estimators and all that they need are loaded by their names, so these are asked
for. The statements are timed in fresh interpreters, in turns, so that a noisy machine treats them alike; the medians
and their ratio are printed. The ratio is to stay below 1.2::

    python docs/benchmarks/import_time.py --repeats 15
"""

import argparse
import statistics
import subprocess
import sys
import time

STATEMENTS = {
    "interpreter alone": "pass",
    "import sklearn, torch": "import sklearn, torch",
    "from sktl import *": "from sktl import *",
}
LIMIT = 1.2


def seconds(statement):
    """Time a statement in a fresh interpreter, its start included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="interpreters started per statement (default: 15)")
    repeats = parser.parse_args().repeats
    for statement in STATEMENTS.values():
        seconds(statement)  # warm the file cache
    times = {label: [] for label in STATEMENTS}
    for _ in range(repeats):
        for label, statement in STATEMENTS.items():
            times[label].append(seconds(statement))
    medians = {label: statistics.median(values) for label, values in times.items()}
    for label, median in medians.items():
        print(f"{label:24s} {median:6.2f} s  (fastest {min(times[label]):.2f}, slowest {max(times[label]):.2f})")
    ratio = medians["from sktl import *"] / medians["import sklearn, torch"]
    print(f"ratio {ratio:.2f}, limit {LIMIT}")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
