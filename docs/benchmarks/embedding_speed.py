"""How fast do image files become embeddings, and how near is that to what the machine allows?

Photo-like JPEGs are generated into a temporary folder. Ways are measured in turn, several rounds of all of them, and
the medians are compared, so that a noisy machine is noisy for all::

    python docs/benchmarks/embedding_speed.py --files 1000 --repeats 5
    python docs/benchmarks/embedding_speed.py --growth

The ways: sktl; the loop that people write by hand (a ``DataLoader`` with two workers around timm's transform, float32);
embetter, if it is installed. The limit is what the cores could do if they did nothing but decode and compute: cores /
(1 / decoded per second and core + 1 / computed per second and core), both measured here with sktl's own parts.
``--growth`` reports how much memory a fresh process takes for 1,000 and for 16,000 files, beyond the loaded model and
the embeddings themselves, and how long each file takes it.
"""

import argparse
import dataclasses
import multiprocessing
import resource
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import timm
import torch
from PIL import Image

from sktl.backbones import load_backbone
from sktl.embedding import embed
from sktl.embedding._threads import ThreadLimit
from sktl.embedding.engine import make_plan
from sktl.embedding.runtime import get_runner
from sktl.inputs import ImagePreprocessor, open_rows


def write_photos(folder, n_files, seed=0):
    """Write JPEGs of 500 x 375: gradients, blotches and grain compress about as photographs do."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, 500)[None, :, None] + np.linspace(0, 1, 375)[:, None, None]
    paths = []
    for k in range(n_files):
        blotches = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
        pixels = 60 * ramp * rng.random(3) + 0.6 * np.asarray(blotches) + rng.normal(0, 8, (375, 500, 3))
        paths.append(f"{folder}/{k:05d}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


class PhotoDataset(torch.utils.data.Dataset):
    """What a hand-written loop reads from."""

    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def by_hand(paths, backbone):
    """Embed with the usual DataLoader loop."""
    transform = timm.data.create_transform(**backbone.data_config, is_training=False)
    loader = torch.utils.data.DataLoader(PhotoDataset(paths, transform), batch_size=32, num_workers=2)
    with torch.inference_mode():
        return torch.cat([backbone.module(batch) for batch in loader]).numpy()


def with_embetter(name):
    """Return a function that embeds with embetter, or None."""
    try:
        from embetter.vision import ImageLoader, TimmEncoder
    except ImportError:
        return None
    create = timm.create_model
    with mock.patch("timm.create_model", lambda name, pretrained, **kwargs: create(name, **kwargs)):  # no download
        encoder = TimmEncoder(name)
    return lambda paths: encoder.transform(ImageLoader().transform(paths))


def seconds(function, *arguments):
    """Time one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def medians(ways, repeats):
    """Time each of the ways in turn, `repeats` rounds; a first round is thrown away."""
    times = {name: [] for name in ways}
    for round_ in range(repeats + 1):
        for name, way in ways.items():
            spent = seconds(way)
            if round_:
                times[name].append(spent)
    return {name: statistics.median(spent) for name, spent in times.items()}


def core_ways(paths, runner, preprocess, plan):
    """Decode, and compute, with one thread on one core."""
    rows, few = open_rows(paths), min(len(paths), 100)
    batch = torch.zeros((plan.batch_size, *preprocess(rows[0].pixels()).shape), dtype=torch.uint8)

    def decode():
        for k in range(few):
            row = rows[k]
            preprocess(row.pixels())

    def compute():
        ThreadLimit(1)
        for _ in range(8):
            runner(batch)

    def in_thread(function):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(function).result()

    return {"decode": lambda: in_thread(decode), "compute": lambda: in_thread(compute)}, few, 8 * plan.batch_size


def bare_ways(arrays, backbone, runner, plan):
    """The forward pass alone: of the module as it is in one thread of Python, and of sktl's program on all lanes."""
    network = timm.create_model(backbone.name, num_classes=0).eval().to(plan.dtype)
    network = network.to(device=plan.device, memory_format=torch.channels_last)
    batches = [torch.from_numpy(arrays[k : k + 32]) for k in range(0, len(arrays), 32)]
    small = [torch.from_numpy(arrays[k : k + plan.batch_size]) for k in range(0, len(arrays), plan.batch_size)]

    def module():
        with torch.inference_mode():
            for batch in batches:
                network(batch.permute(0, 3, 1, 2).to(plan.device, plan.dtype))

    def program():
        with ThreadPoolExecutor(plan.lanes, initializer=ThreadLimit, initargs=(plan.share.threads,)) as pool:
            list(pool.map(lambda batch: runner(batch).cpu(), small))

    return {"module": module, "program": program}


def measure(name, paths, arguments):
    """Measure one backbone; rows of the table."""
    backbone = load_backbone(name, weights=None)
    plan = make_plan(backbone.view, device="cpu", runtime=arguments.runtime)
    policy = {"device": "cpu", "runtime": arguments.runtime}
    preprocess = ImagePreprocessor(backbone.data_config)
    mean, std = preprocess.config["mean"], preprocess.config["std"]
    runner = get_runner(backbone.view, plan.device, plan.dtype, plan.runtime, mean, std, plan.share)
    height, width = preprocess.config["input_size"][1:]
    shape = (max(64, len(paths) // 64 * 64), height, width, 3)
    arrays = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    uncut = dataclasses.replace(backbone.view, data_config={**backbone.data_config, "crop_pct": 1.0})
    cores, n_decoded, n_computed = core_ways(paths, runner, preprocess, plan)
    ways = {
        "sktl": lambda: embed(open_rows(paths), backbone.view, **policy),
        "by hand": lambda: by_hand(paths, backbone),
        "arrays": lambda: embed(open_rows(arrays), uncut, **policy),
        **bare_ways(arrays, backbone, runner, plan),
        **cores,
    }
    embetter = with_embetter(name)
    if embetter is not None:
        ways["embetter"] = lambda: embetter(paths)
    spent = medians(ways, arguments.repeats)
    limit = plan.share.cores / (spent["decode"] / n_decoded + spent["compute"] / n_computed)
    ours = len(paths) / spent["sktl"]
    return {
        "backbone": name,
        "sktl, files/s": f"{ours:.0f}",
        "by hand, files/s": f"{len(paths) / spent['by hand']:.0f}",
        "sktl / by hand": f"{spent['by hand'] / spent['sktl']:.2f}",
        "sktl / embetter": f"{spent['embetter'] / spent['sktl']:.2f}" if embetter else "not installed",
        "limit, files/s": f"{limit:.0f}",
        "sktl / limit": f"{ours / limit:.2f}",
        "arrays, rows/s": f"{len(arrays) / spent['arrays']:.0f}",
        "arrays / bare module": f"{spent['module'] / spent['arrays']:.2f}",
        "arrays / bare program": f"{spent['program'] / spent['arrays']:.2f}",
    }


def growth(name, paths, runtime):
    """What files cost a fresh process: MiB beyond those for the first 64 and for the output, and milliseconds each."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_growth_here, (name, paths, runtime))


def _growth_here(name, paths, runtime):
    backbone = load_backbone(name, weights=None)
    embed(open_rows(paths[:64]), backbone.view, device="cpu", runtime=runtime)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    output = embed(open_rows(paths), backbone.view, device="cpu", runtime=runtime)
    spent = time.perf_counter() - start
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return taken / 1024 - output.nbytes / 2**20, 1000 * spent / len(paths)


def print_table(rows):
    """Print dicts of the same keys as a Markdown table."""
    names = list(rows[0])
    for line in (names, ["---"] * len(names), *([str(row[name]) for name in names] for row in rows)):
        print("| " + " | ".join(line) + " |")


def main():
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backbones", nargs="+", default=["mobilenetv3_small_100", "resnet50"])
    parser.add_argument("--runtime", default="auto", help="auto, torch, compile or openvino")
    parser.add_argument("--growth", action="store_true", help="measure memory instead of time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), arguments.files)
        if arguments.growth:
            name, sizes = arguments.backbones[0], (arguments.files, 16 * arguments.files)
            many = [_linked(path, k) for k in range(16) for path in paths]
            costs = [growth(name, many[:size], arguments.runtime) for size in sizes]
            print_table(
                [
                    {"files": size, "memory, MiB": f"{memory:.0f}", "ms per file": f"{spent:.2f}"}
                    for size, (memory, spent) in zip(sizes, costs, strict=True)
                ]
            )
        else:
            print_table([measure(name, paths, arguments) for name in arguments.backbones])


def _linked(path, k):
    """The same picture as a file of other content: a byte behind its end changes the hash, not the pixels."""
    copied = Path(path).with_name(f"{k}-{Path(path).name}")
    copied.write_bytes(Path(path).read_bytes() + bytes([k]))
    return str(copied)


if __name__ == "__main__":
    main()
