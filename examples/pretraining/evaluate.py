"""Judge a backbone by simple models on its frozen embeddings.

For every data set one table row per representation: the pretrained network, the same network with random weights, and
the raw pixels; each read by a linear probe (standardised logistic regression) and by 5 nearest neighbours.

Usage::

    python -m examples.pretraining.evaluate
    python -m examples.pretraining.evaluate --data some/folder --max-train 500 --max-test 300
    python -m examples.pretraining.evaluate --fine-tune --measure

A folder given by ``--data`` holds ``train/<class>/*`` and ``test/<class>/*``.
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
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

from .canvas import N_CLASSES
from .generate import DRAW

WEIGHTS = Path(__file__).parents[2] / "sktl" / "backbones" / "bundled" / "tiny-1.safetensors"


def build_network(weights, pretrained=True, seed=0):
    """Build the network that the JSON file beside the weights describes.

    Parameters
    ----------
    weights : Path
        The safetensors file.
    pretrained : bool, default=True
        Whether to load the weights; else they are random.
    seed : int, default=0
        Seed of random weights.

    Returns
    -------
    nn.Module
        In evaluation mode.
    """
    about = json.loads(Path(weights).with_suffix(".json").read_text())
    torch.manual_seed(seed)
    network = timm.create_model(about["architecture"], num_classes=0, **about["architecture_kwargs"])
    if pretrained:
        network.load_state_dict({name: value.float() for name, value in load_file(weights).items()}, strict=True)
    return network.eval()


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


def digits_task():
    """Half of scikit-learn's digits for training, half for testing, as images."""
    pixels, labels = load_digits(return_X_y=True)
    images = [Image.fromarray((row.reshape(8, 8) * 255 / 16).astype(np.uint8)) for row in pixels]
    return train_test_split(images, labels, test_size=0.5, stratify=labels, random_state=0)


def unseen_formulas_task(classes_per_family=10, images_per_class=40, seed=1):
    """Pictures of formulas that no pretraining run has seen, half for training, half for testing."""
    images, labels = [], []
    for family in ("creatures", "contours", "fields", "textures", "fractals"):
        for label in range(N_CLASSES[family], N_CLASSES[family] + classes_per_family):
            for i in range(images_per_class):
                picture = DRAW[family](label, np.random.default_rng([seed, label, i]))
                images.append(Image.fromarray((255 * np.clip(picture, 0, 1)).astype(np.uint8)))
                labels.append(f"{family}/{label}")
    return train_test_split(images, labels, test_size=0.5, stratify=labels, random_state=0)


def folder_task(folder, max_train, max_test, seed=0):
    """Images and labels of a folder, at most so many, chosen at random."""
    parts = []
    for name, limit in (("train", max_train), ("test", max_test)):
        paths = sorted(path for path in (Path(folder) / name).glob("*/*") if path.is_file())
        order = np.random.default_rng(seed).permutation(len(paths))[:limit]
        parts.append(([Image.open(paths[i]).convert("RGB") for i in order], [paths[i].parent.name for i in order]))
    (train, train_labels), (test, test_labels) = parts
    return train, test, train_labels, test_labels


def score(train, test, train_labels, test_labels):
    """Accuracy of the linear probe and of 5 nearest neighbours on given features."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2_000))
    neighbours = make_pipeline(StandardScaler(), KNeighborsClassifier(5))
    return [model.fit(train, train_labels).score(test, test_labels) for model in (probe, neighbours)]


def compare(task, weights, size):
    """Score the pretrained network, the random network and the raw pixels on one task.

    Parameters
    ----------
    task : tuple
        Training images, test images, training labels, test labels.
    weights : Path
        The safetensors file.
    size : int
        Side of the input.

    Returns
    -------
    dict of str to list of float
        Accuracy of the two readers by representation.
    """
    train, test, *labels = task
    inputs = [to_input(images, size) for images in (train, test)]
    scores = {}
    for name, pretrained in (("pretrained", True), ("random weights", False)):
        network = build_network(weights, pretrained)
        scores[name] = score(*(embed(network, part) for part in inputs), *labels)
    side = min(32, *train[0].size)
    scores["raw pixels"] = score(*(to_input(images, side).flatten(1).numpy() for images in (train, test)), *labels)
    return scores


def fine_tune(weights, pretrained, task, epochs, size=32, batch_size=32, learning_rate=1e-3, seed=0):
    """Train all weights and a new head for a few epochs and return the test accuracy."""
    train, test, train_labels, test_labels = task
    network = build_network(weights, pretrained, seed)
    network = nn.Sequential(network, nn.Linear(network.num_features, 10))
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01)
    inputs, targets = to_input(train, size), torch.as_tensor(train_labels)
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(network(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    return float((embed(network.eval(), to_input(test, size)).argmax(1) == test_labels).mean())


def print_table(title, scores):
    """Print the scores of one task as Markdown."""
    print(f"\n{title}\n\n| representation | linear probe | 5-NN |\n|---|---|---|")
    for name, (probe, neighbours) in scores.items():
        print(f"| {name} | {probe:.3f} | {neighbours:.3f} |", flush=True)


def print_fine_tuning(digits, weights):
    """Print, for few digits and few epochs, how fine-tuning compares with training from scratch."""
    print("\nall weights trained on digits, 32 x 32 pixels\n\n| digits | epochs | pretrained | from scratch |")
    print("|---|---|---|---|")
    train, test, train_labels, test_labels = digits
    for count, epochs in ((100, 5), (100, 10), (898, 1), (898, 3)):
        task = (train[:count], test, train_labels[:count], test_labels)
        accuracies = [fine_tune(weights, pretrained, task, epochs) for pretrained in (True, False)]
        print("| {} | {} | {:.3f} | {:.3f} |".format(count, epochs, *accuracies), flush=True)


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


def build_parser():
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="safetensors file with its JSON beside it")
    parser.add_argument("--data", nargs="*", default=[], help="folders with train/<class> and test/<class>")
    parser.add_argument("--max-train", type=int, default=2_000, help="images per folder (default: %(default)s)")
    parser.add_argument("--max-test", type=int, default=1_000, help="images per folder (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="side of the input (default: %(default)s)")
    parser.add_argument("--fine-tune", action="store_true", help="also fine-tune on digits, and train from scratch")
    parser.add_argument("--measure", action="store_true", help="also count multiply-adds and measure the speed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    return parser


def main():
    """Evaluate what the command line names."""
    arguments = build_parser().parse_args()
    torch.set_num_threads(arguments.threads)
    digits = digits_task()
    print_table("digits", compare(digits, arguments.weights, arguments.size))
    print_table("unseen formulas", compare(unseen_formulas_task(), arguments.weights, arguments.size))
    for folder in arguments.data:
        task = folder_task(folder, arguments.max_train, arguments.max_test)
        print_table(Path(folder).name, compare(task, arguments.weights, arguments.size))
    if arguments.fine_tune:
        print_fine_tuning(digits, arguments.weights)
    if arguments.measure:
        print_cost(build_network(arguments.weights), arguments.size)


if __name__ == "__main__":
    main()
