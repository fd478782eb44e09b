"""What streams, shards and workers cost, against one call in one process.

On generated JPEG files of 500 x 375 pixels, written once into a folder that may be kept::

    python docs/benchmarks/scaling.py growth --folder photos      # memory of streams: 4,000 and 40,000 rows
    python docs/benchmarks/scaling.py overhead --folder photos    # streams, shards and workers, against transform
    python docs/benchmarks/scaling.py workers --with dask --folder photos    # two workers of one core against one
    python docs/benchmarks/scaling.py workers --with ray --folder photos

``--ways`` measures some of the ways only. Times are medians over rounds in which the ways take turns, after a round
that is thrown away. All cores are given to each way in ``overhead``, where workers are as many processes as cores; in
``workers`` they have one core each, and a single one is pinned to it. Ray starts its actors anew for each pass: the
time of a pass over a few rows is printed, and subtracted. The machine should have nothing else to do.
"""

import argparse
import contextlib
import logging
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from itertools import count, islice
from pathlib import Path

from embedding_speed import write_photos

from sktl import PretrainedFeatureTransformer
from sktl.distributed import embed_dask, embed_ray, embed_to_parquet

ROWS_PER_BATCH = 500
ROWS_PER_SHARD = 1024
ROWS_PER_TASK = 256
FEW_ROWS = "ray, few rows"
# Of glibc: what is smaller is taken from memory that the process has. Dask's own setting for its workers has each large
# array of a forward pass fetched from the system anew, page by page.
MMAP_THRESHOLD = "MALLOC_MMAP_THRESHOLD_"


def photos(folder, n_files):
    """Return the files of the folder, written if they are not there yet."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    found = sorted(str(path) for path in Path(folder).glob("*.jpg"))
    return found[:n_files] if len(found) >= n_files else write_photos(folder, n_files)


def make_transformer(options, paths):
    return PretrainedFeatureTransformer(options.backbone, weights=None, device="cpu", cache_bytes=0).fit(paths[:1])


def parts_of(paths, size):
    return [paths[start : start + size] for start in range(0, len(paths), size)]


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(ways, n_rounds):
    """Measure ways in turn, and print each as it is done; return the median seconds of each."""
    seconds = {name: [] for name in ways}
    for number in range(n_rounds + 1):
        for name, work in ways.items():
            took = timed(work)
            print(f"  {f'round {number}' if number else 'warm-up'}: {name} {took:.2f} s", flush=True)
            if number:
                seconds[name].append(took)
    return {name: statistics.median(each) for name, each in seconds.items()}


# Memory -------------------------------------------------------------------------------------------------------------


def stream(transformer, paths, n_rows):
    """Embed rows, the same files again and again, as a stream of batches."""
    batches = parts_of(paths, ROWS_PER_BATCH)
    endless = (batches[number % len(batches)] for number in count())
    for _ in transformer.transform_batches(islice(endless, n_rows // ROWS_PER_BATCH)):
        pass


def write_shards(transformer, paths, n_rows):
    """Embed rows, the same files again and again, into Parquet shards."""
    rows = ((f"{number}", paths[number % len(paths)]) for number in range(n_rows))
    with tempfile.TemporaryDirectory(prefix="sktl-shards-") as out:
        embed_to_parquet(rows, out, transformer, rows_per_shard=ROWS_PER_SHARD)


STREAMS = {"transform_batches": stream, "embed_to_parquet": write_shards}


def peak_beyond_start(options, way, paths, n_rows, sender):
    """Send how far the peak of memory for all rows lies above that for the first ones."""
    transformer = make_transformer(options, paths)
    STREAMS[way](transformer, paths, ROWS_PER_SHARD)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    STREAMS[way](transformer, paths, n_rows)
    sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def measure_growth(options, paths):
    context = multiprocessing.get_context("spawn")
    for way in options.ways or STREAMS:
        for n_rows in (options.files, 10 * options.files):
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=peak_beyond_start, args=(options, way, paths, n_rows, sender))
            child.start()
            sender.close()  # so that a child that fails is noticed here
            print(f"{way}, {n_rows:6,} rows: {receiver.recv():.1f} MiB beyond {ROWS_PER_SHARD} rows", flush=True)
            child.join()


# Workers ------------------------------------------------------------------------------------------------------------


def pin_to_core(number):
    """Keep this process, with the threads it has and those it will start, on one of the cores that it may use."""
    core = sorted(os.sched_getaffinity(0))[number]
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})


def pin_to_first_core():
    pin_to_core(0)


@contextlib.contextmanager
def dask_ways(options, transformer, paths, n):
    """What `n` worker processes of one core each have to do."""
    import dask.bag
    from distributed import Client, LocalCluster

    bag = dask.bag.from_sequence(paths, partition_size=ROWS_PER_TASK)
    settings = {} if options.plain_dask else {f"distributed.nanny.pre-spawn-environ.{MMAP_THRESHOLD}": 2**25}
    alone = {"threads_per_worker": 1, "dashboard_address": None, "memory_limit": 0}
    with dask.config.set(settings), LocalCluster(n_workers=n, **alone) as cluster, Client(cluster) as client:
        for number, worker in enumerate(client.scheduler_info()["workers"]):
            client.run(pin_to_core, number, workers=[worker])
        yield {f"dask, {n} workers": lambda: embed_dask(bag, transformer).compute(scheduler=client)}


@contextlib.contextmanager
def ray_ways(options, transformer, paths, n):
    """What `n` actors of one core each have to do, and the same for a few rows; one actor is pinned to its core."""
    import ray

    environment = {"worker_process_setup_hook": pin_to_first_core} if n == 1 else None
    silence = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(num_cpus=n, runtime_env=environment, **silence)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        ways = {}
        for name, part in ((f"ray, {n} actors", paths), (FEW_ROWS, paths[:n])):
            n_blocks = max(n, len(part) // ROWS_PER_TASK)
            rows = ray.data.from_items([{"photo": path} for path in part], override_num_blocks=n_blocks)
            ways[name] = embed_ray(rows, transformer, num_actors=n, batch_size=ROWS_PER_TASK).materialize
        yield ways
    finally:
        ray.shutdown()


ENGINES = {"dask": dask_ways, "ray": ray_ways}


def without_start(seconds):
    """Take off what Ray's actors need to start."""
    start = seconds.pop(FEW_ROWS, 0.0)
    return {name: each - start if name.startswith("ray") else each for name, each in seconds.items()}


def measure_workers(options, paths):
    transformer, alone = make_transformer(options, paths), []
    for n in (1, 2):
        with ENGINES[options.engine](options, transformer, paths, n) as ways:
            alone += without_start(compare(ways, options.repeats)).values()
    one, two = alone
    print(f"one worker {one:.2f} s, two workers {two:.2f} s: {one / two:.2f} times as fast")


# Overhead -----------------------------------------------------------------------------------------------------------


def measure_overhead(options, paths):
    transformer, n_cores = make_transformer(options, paths), len(os.sched_getaffinity(0))
    ways = {"transform": lambda: transformer.transform(paths)}
    with contextlib.ExitStack() as stack:
        for name in options.ways or [*STREAMS, *ENGINES]:
            if name in ENGINES:
                ways |= stack.enter_context(ENGINES[name](options, transformer, paths, n_cores))
            else:
                ways[name] = lambda work=STREAMS[name]: work(transformer, paths, len(paths))
        seconds = without_start(compare(ways, options.repeats))
    for name, each in seconds.items():
        print(
            f"{name:18} {each:7.2f} s  {len(paths) / each:7.1f} rows/s  {each / seconds['transform']:.3f} of transform"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["growth", "overhead", "workers"])
    parser.add_argument("--with", dest="engine", choices=[*ENGINES], default="dask", help="for workers (dask)")
    parser.add_argument("--ways", nargs="+", choices=[*STREAMS, *ENGINES], help="for growth and overhead (all)")
    parser.add_argument("--files", type=int, default=4000, help="pictures (default: 4000)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--backbone", default="mobilenetv3_small_100", help="a timm name, with random weights")
    parser.add_argument("--plain-dask", action="store_true", help="Dask's workers with the memory settings of its own")
    parser.add_argument("--folder", help="where the pictures are kept between runs (default: nowhere)")
    options = parser.parse_args()
    measure = {"growth": measure_growth, "overhead": measure_overhead, "workers": measure_workers}[options.what]
    with tempfile.TemporaryDirectory(prefix="sktl-scaling-") as folder:
        measure(options, photos(options.folder or folder, options.files))


if __name__ == "__main__":
    main()
