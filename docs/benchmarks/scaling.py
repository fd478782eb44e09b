"""What streams, shards and workers cost, against one call in one process.

On generated JPEG files of 500 x 375 pixels::

    python docs/benchmarks/scaling.py growth            # memory of transform_batches: 4,000 and 40,000 rows
    python docs/benchmarks/scaling.py overhead          # transform_batches, Parquet shards, Dask, against transform
    python docs/benchmarks/scaling.py workers --with dask     # two workers of one core against one
    python docs/benchmarks/scaling.py workers --with ray

Times are medians over rounds in which the ways take turns, after a round that is thrown away. Each way is given the
same cores: all in ``overhead``, one per worker in ``workers``. The machine should have nothing else to do.
"""

import argparse
import contextlib
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from itertools import count

from embedding_speed import write_photos

from sktl import PretrainedFeatureTransformer
from sktl.distributed import embed_dask, embed_ray, embed_to_parquet

ROWS_PER_BATCH = 500


def make_transformer(options, paths):
    return PretrainedFeatureTransformer(options.backbone, weights=None, device="cpu", cache_bytes=0).fit(paths[:1])


def parts_of(paths, size):
    return [paths[start : start + size] for start in range(0, len(paths), size)]


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(ways, n_rounds):
    """Measure ways in turn; return the median seconds of each."""
    seconds = {name: [] for name in ways}
    for number in range(n_rounds + 1):
        for name, work in ways.items():
            took = timed(work)
            if number:
                seconds[name].append(took)
    return {name: statistics.median(each) for name, each in seconds.items()}


# Memory -------------------------------------------------------------------------------------------------------------


def peak_beyond_start(options, paths, n_rows, sender):
    """Stream rows, the same files again and again; send how far the peak of memory lies above that of one batch."""
    transformer = make_transformer(options, paths)
    batches = parts_of(paths, ROWS_PER_BATCH)
    for _ in transformer.transform_batches(batches[:1]):
        pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n_left = n_rows // ROWS_PER_BATCH
    endless = (batches[number % len(batches)] for number in count())
    for _ in transformer.transform_batches(next(endless) for _ in range(n_left)):
        pass
    sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def measure_growth(options, paths):
    context = multiprocessing.get_context("spawn")
    for n_rows in (options.files, 10 * options.files):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=peak_beyond_start, args=(options, paths, n_rows, sender))
        child.start()
        print(f"{n_rows:7,} rows: {receiver.recv():6.1f} MiB beyond one batch of {ROWS_PER_BATCH}", flush=True)
        child.join()


# Overhead -----------------------------------------------------------------------------------------------------------


def write_shards(transformer, paths):
    with tempfile.TemporaryDirectory(prefix="sktl-shards-") as out:
        embed_to_parquet(((path, path) for path in paths), out, transformer, rows_per_shard=1024)


def measure_overhead(options, paths):
    import dask.bag

    transformer = make_transformer(options, paths)
    bag = dask.bag.from_sequence(paths, partition_size=ROWS_PER_BATCH)
    ways = {
        "transform": lambda: transformer.transform(paths),
        "transform_batches": lambda: list(transformer.transform_batches(parts_of(paths, ROWS_PER_BATCH))),
        "embed_to_parquet": lambda: write_shards(transformer, paths),
        "embed_dask": lambda: embed_dask(bag, transformer).compute(scheduler="synchronous"),
    }
    seconds = compare(ways, options.repeats)
    for name, each in seconds.items():
        print(
            f"{name:18} {each:7.2f} s  {len(paths) / each:7.1f} rows/s  {each / seconds['transform']:.3f} of transform"
        )


# Workers ------------------------------------------------------------------------------------------------------------


def pin_to_core(number):
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[number]})


@contextlib.contextmanager
def dask_workers(n):
    """Workers of one core each."""
    from distributed import Client, LocalCluster

    options = {"threads_per_worker": 1, "dashboard_address": None, "memory_limit": 0}
    with LocalCluster(n_workers=n, **options) as cluster, Client(cluster) as client:
        for number, worker in enumerate(client.scheduler_info()["workers"]):
            client.run(pin_to_core, number, workers=[worker])
        yield client


def seconds_with_dask(options, paths, n):
    import dask.bag

    transformer = make_transformer(options, paths)
    bag = dask.bag.from_sequence(paths, partition_size=ROWS_PER_BATCH // 10)
    with dask_workers(n) as client:
        ways = {n: lambda: embed_dask(bag, transformer).compute(scheduler=client)}
        return compare(ways, options.repeats)[n]


def seconds_with_ray(options, paths, n):
    import ray

    ray.init(num_cpus=n, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        transformer = make_transformer(options, paths)
        dataset = ray.data.from_items([{"photo": path} for path in paths], override_num_blocks=10 * n)
        # Ray starts its actors anew for each pass; the pass of a few rows is the price of that.
        few = dataset.limit(n)
        embedded = [embed_ray(each, transformer, num_actors=n, batch_size=50) for each in (dataset, few)]
        ways = {number: each.materialize for number, each in enumerate(embedded)}
        seconds = compare(ways, options.repeats)
        return seconds[0] - seconds[1]
    finally:
        ray.shutdown()


def measure_workers(options, paths):
    measure = {"dask": seconds_with_dask, "ray": seconds_with_ray}[options.engine]
    one, two = (measure(options, paths, n) for n in (1, 2))
    print(f"one worker {one:.2f} s, two workers {two:.2f} s: {one / two:.2f} times as fast")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["growth", "overhead", "workers"])
    parser.add_argument("--with", dest="engine", choices=["dask", "ray"], default="dask", help="for workers (dask)")
    parser.add_argument("--files", type=int, default=4000, help="pictures (default: 4000)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--backbone", default="mobilenetv3_small_100", help="a timm name, with random weights")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sktl-scaling-") as folder:
        paths = write_photos(folder, options.files)
        {"growth": measure_growth, "overhead": measure_overhead, "workers": measure_workers}[options.what](
            options, paths
        )


if __name__ == "__main__":
    main()
