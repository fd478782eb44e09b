"""What does training cost beyond what must be computed?

Three questions, each answered by two ways that run in turns: a head alone against embedding the images once; the last
group of layers with and without keeping what the frozen layers before it give; a training step of the whole stack
against a hand-written loop of the same step, in the layout that images have by torchvision's transforms and in the
faster one. Random weights and images: the numbers are times, not accuracies::

    python docs/benchmarks/training_speed.py --images 500 --epochs 10 --steps 20 --repeats 3
"""

import argparse
import statistics
import time
from functools import partial

import numpy as np
import timm
import torch

from sktl import FineTuneClassifier, PretrainedFeatureTransformer
from sktl.embedding import default_store, resolve_device

N_CLASSES = 10


def make_data(n, size):
    """Return random images and labels."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), np.arange(n) % N_CLASSES


def seconds(way, *arguments):
    """Time a way with an empty store."""
    default_store().clear()
    started = time.perf_counter()
    way(*arguments)
    return time.perf_counter() - started


def compare(first, second, repeats, *arguments):
    """Time two ways in turns after a run of each that does not count; return the medians."""
    times = [(seconds(first, *arguments), seconds(second, *arguments)) for _ in range(repeats + 1)][1:]
    return (statistics.median(column) for column in zip(*times, strict=True))


def head_alone(arguments):
    """Compare a head on a frozen backbone with the embeddings that it needs."""
    X, y = make_data(arguments.images, arguments.size)
    options = {"weights": None, "image_size": arguments.size}

    def fit():
        FineTuneClassifier(arguments.backbone, "feature_extraction", random_state=0, **options).fit(X, y)

    def embed():
        PretrainedFeatureTransformer(arguments.backbone, **options).fit_transform(X)

    return compare(fit, embed, arguments.repeats)


def last_group(arguments):
    """Compare training of the last group without and with kept activations."""
    X, y = make_data(arguments.images, arguments.size)

    def fit(cache_prefix):
        FineTuneClassifier(
            arguments.backbone,
            "partial",
            weights=None,
            image_size=arguments.size,
            max_epochs=arguments.epochs,
            net_params={"cache_prefix": cache_prefix},
            random_state=0,
        ).fit(X, y)

    return compare(lambda: fit(False), lambda: fit(True), arguments.repeats)


def hand_written_loop(X, y, precision, layout):
    """Train as one writes it down: AdamW, clipped gradients, a schedule; return the seconds per step.

    The images are normalised beforehand, in the layout that a loop of torchvision's transforms has, or channels last.
    """
    device = resolve_device("auto")
    network = timm.create_model("resnet18", num_classes=N_CLASSES).to(device, memory_format=layout).train()
    images, labels = torch.from_numpy(X).permute(0, 3, 1, 2) / 255 - 0.5, torch.from_numpy(y)
    images = images.to(device, memory_format=layout)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    order = torch.randperm(len(images)).split(32)
    started = time.perf_counter()
    for batch in order:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            output = network(images[batch])
            loss = torch.nn.functional.cross_entropy(output, labels[batch].to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        loss.item()
    return (time.perf_counter() - started) / len(order)


def step(arguments, layout):
    """Compare a step of the whole stack with that of a hand-written loop, by the seconds of the fastest epochs."""
    X, y = make_data(32 * arguments.steps, arguments.size)
    times = []
    for _ in range(arguments.repeats + 1):
        model = FineTuneClassifier("resnet18", "fine_tuning", weights=None, image_size=arguments.size, random_state=0)
        model.set_params(max_epochs=1, batch_size=32).fit(X, y)
        by_hand = hand_written_loop(X, y, model.history_[-1]["precision"], layout)
        times.append((model.history_[-1]["dur"] / arguments.steps, by_hand))
    return (min(column) for column in zip(*times[1:], strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the questions' names")
    arguments = parser.parse_args()
    print("| question | first, s | second, s | first / second |\n|---|---:|---:|---:|")
    for name, question in (
        ("head alone / embedding once", head_alone),
        ("last group, everything in each epoch / frozen layers once", last_group),
        ("a step of resnet18 / a hand-written loop's", partial(step, layout=torch.contiguous_format)),
        ("the same / a hand-written loop's, channels last", partial(step, layout=torch.channels_last)),
    ):
        if not any(part in name for part in arguments.only):
            continue
        first, second = question(arguments)
        print(f"| {name} | {first:.3f} | {second:.3f} | {first / second:.3f} |", flush=True)


if __name__ == "__main__":
    main()
