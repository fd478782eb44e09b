"""Judge a run by the tasks that settings may be chosen by: digits, unseen formulas and palettes.

For every task one table row per representation: the networks, the first one with random weights, and the raw pixels;
each read by a linear probe (standardised logistic regression) and by 5 nearest neighbours. A checkpoint of `train` can
be judged while the run goes on. What the exported backbone is worth on photographs is for
``docs/benchmarks/bundled_backbone.py`` to say, once, at the end.

Usage::

    python -m examples.pretraining.evaluate sktl/backbones/bundled/tiny-2.safetensors /tmp/pretrain/tiny.pt --measure
    python -m examples.pretraining.evaluate sktl/backbones/bundled/tiny-3.safetensors --rates 0.001:0.3 0.002:1
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sktl import FineTuneClassifier
from sktl.strategies import LinearProbeThenFineTuning

from .export import averaged_backbone
from .tasks import digits_task, palettes_task, unseen_formulas_task

READERS = {
    "linear probe": make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2_000)),
    "5-NN": make_pipeline(StandardScaler(), KNeighborsClassifier(5)),
}


def read_network(path):
    """Read a checkpoint of `train` (``.pt``) or the weights that `export` wrote, with their description beside them.

    Parameters
    ----------
    path : Path

    Returns
    -------
    nn.Module
        In evaluation mode.
    """
    if path.suffix == ".pt":
        return averaged_backbone(torch.load(path, weights_only=True))
    about = json.loads(path.with_suffix(".json").read_text())
    network = timm.create_model(about["architecture"], num_classes=0, **about["architecture_kwargs"])
    network.load_state_dict({name: value.float() for name, value in load_file(path).items()}, strict=True)
    return network.eval()


def randomised(network, seed=0):
    """Draw all weights of a network anew, as its layers do when they are built."""
    torch.manual_seed(seed)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    network.init_weights()
    return network


def to_input(images, size):
    """Resize the shorter side to ``size``, cut the middle square, and scale to [-1, 1].

    Parameters
    ----------
    images : list of PIL.Image.Image
    size : int

    Returns
    -------
    Tensor of shape (n, 3, size, size)
    """
    squares = []
    for image in images:
        side, (width, height) = min(image.size), image.size
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        square = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=box)
        squares.append(np.asarray(square))
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def embed(network, inputs, batch_size=100):
    """Embed all inputs.

    Parameters
    ----------
    network : nn.Module
    inputs : Tensor of shape (n, 3, H, W)
    batch_size : int, default=100

    Returns
    -------
    ndarray of shape (n, width)
    """
    return torch.cat([network(batch) for batch in inputs.split(batch_size)]).numpy()


def print_table(title, task, networks, size):
    """Print as Markdown what the readers make of the networks' embeddings and of the raw pixels of one task."""
    train, test, train_labels, test_labels = task
    print(f"\n{title}\n\n| representation | {' | '.join(READERS)} |\n|---|{'---|' * len(READERS)}")
    inputs = [to_input(images, size) for images in (train, test)]
    side = min(32, *train[0].size)
    features = {name: [embed(network, part) for part in inputs] for name, network in networks.items()}
    features["raw pixels"] = [to_input(images, side).flatten(1).numpy() for images in (train, test)]
    for name, (known, new) in features.items():
        scores = [reader.fit(known, train_labels).score(new, test_labels) for reader in READERS.values()]
        print(f"| {name} | {' | '.join(f'{score:.3f}' for score in scores)} |", flush=True)


def print_fine_tuning(title, task, network, size, rates, epochs):
    """Print what fine-tuning makes of a task at each pair of rates, beside the same network from scratch."""
    train, test, train_labels, test_labels = task
    ways = {
        f"{rate}, backbone x {scale}": (LinearProbeThenFineTuning(backbone_lr_scale=scale), rate)
        for rate, scale in rates
    }
    print(f"\n{title}, fine-tuned, {epochs} epochs\n\n| learning rate | accuracy |\n|---|---|")
    options = {"data_config": {"mean": [0.5] * 3, "std": [0.5] * 3}, "image_size": size, "max_epochs": epochs}
    for name, (strategy, rate) in {**ways, "from scratch": ("from_scratch", None)}.items():
        model = FineTuneClassifier(network, strategy, learning_rate=rate, random_state=0, **options)
        print(f"| {name} | {model.fit(train, train_labels).score(test, test_labels):.3f} |", flush=True)


def multiply_adds(network, size):
    """Count the multiply-adds of all convolutions for one image, in millions."""
    counts = []

    def count(module, _, output):
        counts.append(output.numel() * module.weight[0].numel())

    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    embed(network, torch.zeros(1, 3, size, size))
    for handle in handles:
        handle.remove()
    return sum(counts) / 1e6


def print_cost(network, size, n_images=500):
    """Print the size of the network and its speed, in float32, at the threads chosen."""
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"\n{n_parameters / 1e6:.2f} million parameters")
    for side in (32, size, 96):
        inputs = torch.zeros(n_images, 3, side, side)
        embed(network, inputs[:100])
        start = time.perf_counter()
        embed(network, inputs)
        speed = n_images / (time.perf_counter() - start)
        print(f"{side} x {side}: {multiply_adds(network, side):.1f} million multiply-adds, {speed:.0f} images/s")


def rates(text):
    """Read a learning rate, and the share of it that the backbone has."""
    rate, scale = map(float, text.split(":"))
    return rate, scale


def build_parser():
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", type=Path, help="checkpoints, or safetensors with JSON beside them")
    parser.add_argument("--size", type=int, default=64, help="side of the input (default: %(default)s)")
    parser.add_argument(
        "--rates", nargs="+", type=rates, help="LEARNING_RATE:BACKBONE_SCALE, to fine-tune the first by"
    )
    parser.add_argument("--epochs", type=int, default=5, help="of fine-tuning (default: %(default)s)")
    parser.add_argument("--measure", action="store_true", help="also count multiply-adds and measure the speed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    return parser


def main():
    """Evaluate what the command line names."""
    arguments = build_parser().parse_args()
    torch.set_num_threads(arguments.threads)
    networks = {path.name: read_network(path) for path in arguments.networks}
    networks["random weights"] = randomised(read_network(arguments.networks[0]))
    for title, task in (
        ("digits", digits_task),
        ("unseen formulas", unseen_formulas_task),
        ("palettes", palettes_task),
    ):
        if arguments.rates:
            network = networks[arguments.networks[0].name]
            print_fine_tuning(title, task(), network, arguments.size, arguments.rates, arguments.epochs)
        else:
            print_table(title, task(), networks, arguments.size)
    if arguments.measure:
        print_cost(networks[arguments.networks[0].name], arguments.size)


if __name__ == "__main__":
    main()
