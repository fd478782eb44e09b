"""What is the bundled backbone worth, against random weights, raw pixels, HOG and a network that knows ImageNet?

Frozen features, read by a linear probe and by 5 nearest neighbours, from all training images and from a few per class;
and fine-tuning (the head first, then all weights) against training from scratch, at equal epochs. A set is ``digits``
(scikit-learn's, in two halves) or a folder that holds ``train/<class>/<file>`` and ``test/<class>/<file>``::

    pip install scikit-image
    for set in cifar10_small caltech20 flowers5; do tar -xf ../shared/data/images/$set.tar -C /tmp; done
    python docs/benchmarks/bundled_backbone.py digits /tmp/cifar10_small /tmp/caltech20 /tmp/flowers5 \\
        --ceiling-weights ../shared/data/weights/mobilenetv2_100.qnnpack_dequant.safetensors

Every network sees images at its own size (64 pixels for sktl/tiny, 224 for mobilenetv2_100), raw pixels are 32 x 32 in
RGB (8 x 8 in grey for digits), and HOG reads 64 x 64 pixels. All features are standardised, and the penalty of every
probe is chosen by cross-validation inside its training images. Random weights are a mean over ``--seeds`` starts, few
images over ``--draws`` of them. ``--shots`` and ``--epochs`` without numbers leave those parts out; with
``--results FILE`` what was measured is kept, and not measured again.
"""

import argparse
import json
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktl import FineTuneClassifier, PretrainedFeatureTransformer
from sktl.backbones import load_backbone
from sktl.strategies import resolve_strategy

PENALTIES = np.logspace(-4, 1, 6)


def make_probe():
    """Standardised logistic regression whose C is chosen on three folds of the training rows."""
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    grid = {"logisticregression__C": PENALTIES}
    return GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)), grid, cv=folds)


READERS = {"linear probe": make_probe(), "5-NN": make_pipeline(StandardScaler(), KNeighborsClassifier(5))}


# The sets -------------------------------------------------------------------------------------------------------------


def read_digits():
    """Return training and test images and labels of scikit-learn's digits."""
    rows, labels = load_digits(return_X_y=True)
    images = (rows.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8).repeat(3, axis=3)
    return train_test_split(images, labels, test_size=0.5, stratify=labels, random_state=0)


def read_folder(folder):
    """Return training and test files and labels of a folder."""
    found = [sorted((folder / part).glob("*/*")) for part in ("train", "test")]
    labels = [np.array([path.parent.name for path in paths]) for paths in found]
    return *([str(path) for path in paths] for paths in found), *labels


# The representations --------------------------------------------------------------------------------------------------


def middle_square(item, size):
    """Return the middle square of an image as an array of shape (size, size, 3)."""
    image = Image.fromarray(item) if isinstance(item, np.ndarray) else Image.open(item).convert("RGB")
    side, (width, height) = min(image.size), image.size
    left, top = (width - side) / 2, (height - side) / 2
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)))


def raw_pixels(items):
    """Return pixels: of 8 x 8 grey images as they are, of all others 32 x 32 in RGB."""
    if isinstance(items, np.ndarray):
        return items[..., 0].reshape(len(items), -1).astype(np.float32)
    return np.stack([middle_square(item, 32).ravel() for item in items]).astype(np.float32)


def hog_features(items):
    """Return histograms of oriented gradients: 9 directions, 8 x 8 cells of 8 x 8 pixels, blocks of 2 x 2 cells."""
    from skimage.feature import hog

    describe = partial(hog, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2), channel_axis=-1)
    return np.stack([describe(middle_square(item, 64)) for item in items])


def embed(items, backbone, **options):
    """Return the embeddings of a frozen network."""
    return PretrainedFeatureTransformer(backbone, **options).fit_transform(items)


def embed_randomly(items, name, seed):
    """Return the embeddings of a backbone's architecture with random weights."""
    known = load_backbone(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = timm.create_model(known.recipe["architecture"], num_classes=0, **known.recipe["kwargs"])
    return embed(items, network.eval(), data_config=known.data_config)


def make_representations(arguments):
    """Return lists of functions from items to features, by the name under which their mean is shown."""
    seeds = range(arguments.seeds)
    ways = {name: [partial(embed, backbone=name)] for name in arguments.backbones}
    ways["random weights"] = [partial(embed_randomly, name=arguments.backbones[0], seed=seed) for seed in seeds]
    ways |= {"raw pixels": [raw_pixels], "HOG": [hog_features]}
    if arguments.ceiling_weights:
        ceiling = partial(embed, backbone=arguments.ceiling, weights=arguments.ceiling_weights)
        ways[arguments.ceiling] = [partial(ceiling, image_size=arguments.ceiling_size)]
    return ways


# The questions --------------------------------------------------------------------------------------------------------


def few_per_class(labels, n, seed):
    """Return the places of ``n`` rows of each class."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.choice(np.flatnonzero(labels == label), n, replace=False) for label in np.unique(labels)]
    )


def score_features(features, labels, arguments):
    """Return accuracies by column: each reader on all training rows, and on each draw of a few per class."""
    (train, test), (y, y_test) = features, labels
    scores = {name: [clone(reader).fit(train, y).score(test, y_test)] for name, reader in READERS.items()}
    for shots in arguments.shots:
        for draw in range(arguments.draws):
            rows = few_per_class(y, shots, draw)
            for name, reader in READERS.items():
                accuracy = clone(reader).fit(train[rows], y[rows]).score(test, y_test)
                scores.setdefault(f"{name}, {shots} per class", []).append(accuracy)
    return scores


def score_representation(ways, data, arguments):
    """Return accuracies by column: of all starts of a representation, one after the other."""
    train, test, *labels = data
    columns = {}
    for way in ways:
        for column, scores in score_features((way(train), way(test)), labels, arguments).items():
            columns.setdefault(column, []).extend(scores)
    return columns


def score_training(backbone, strategy, data, arguments):
    """Return accuracies by number of epochs, over seeds."""
    train, test, y, y_test = data
    columns = {}
    for epochs, seed in product(arguments.epochs, range(arguments.seeds)):
        model = FineTuneClassifier(backbone, strategy, max_epochs=epochs, random_state=seed)
        if strategy != "from_scratch":
            model.set_params(strategy=resolve_strategy(strategy), learning_rate=arguments.learning_rate)
            if arguments.backbone_lr_scale is not None:
                model.strategy.set_params(backbone_lr_scale=arguments.backbone_lr_scale)
        model.fit(train, y)
        columns.setdefault(f"{epochs} epoch{'s' * (epochs > 1)}", []).append(model.score(test, y_test))
    return columns


def make_rows(data, arguments):
    """Yield question, name and what computes it, for every row of the tables of a set."""
    for name, ways in make_representations(arguments).items():
        yield "features", name, partial(score_representation, ways, data, arguments)
    if arguments.epochs:
        for name in arguments.backbones:
            yield "training", name, partial(score_training, name, arguments.strategy, data, arguments)
        control = partial(score_training, arguments.backbones[0], "from_scratch", data, arguments)
        yield "training", "from scratch", control


class Results:
    """Accuracies by question, set, representation and column; kept in a file, if there is one.

    Parameters
    ----------
    path : Path or None
    """

    def __init__(self, path):
        self.path = path
        self.values = json.loads(path.read_text()) if path and path.exists() else {"features": {}, "training": {}}

    def add(self, question, title, name, score):
        """Compute a row, unless it is there already, and print it."""
        rows = self.values[question].setdefault(title, {})
        if name not in rows:
            rows[name] = score()
            if self.path:
                self.path.write_text(json.dumps(self.values, indent=1))
        print(f"  {name:20}", *(f"{column} {spread(scores)}" for column, scores in rows[name].items()), flush=True)


# The answers ----------------------------------------------------------------------------------------------------------


def spread(scores):
    """Write a mean, with its standard deviation if there is one."""
    return f"{np.mean(scores):.3f}" + (f" ± {np.std(scores):.3f}" if len(scores) > 1 else "")


def print_tables(by_set, title):
    """Print accuracies as tables in reStructuredText: one for each column, with a row for each representation."""
    columns = dict.fromkeys(column for rows in by_set.values() for row in rows.values() for column in row)
    for column in columns:
        names = dict.fromkeys(name for rows in by_set.values() for name in rows)
        cells = [["..", *by_set]]
        for name in names:
            cells.append([name, *(spread(rows[name][column]) if name in rows else "" for rows in by_set.values())])
        widths = [max(map(len, texts)) for texts in zip(*cells, strict=True)]
        rule = "  ".join("=" * width for width in widths)
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        print("\n".join(["", f"{title}{column}", "", rule, lines[0], rule, *lines[1:], rule]), flush=True)


def print_targets(name, by_set, ceiling):
    """Print by how much a backbone's linear probe is above the others, and how far it is from pixels to the ceiling."""
    probe = {
        title: {way: np.mean(row["linear probe"]) for way, row in results.items()} for title, results in by_set.items()
    }
    print(f"\n{name}, linear probe above others, in points")
    for title, row in probe.items():
        others = {way: 100 * (row[name] - value) for way, value in row.items() if way not in (name, ceiling)}
        print(f"  {title:15}", "  ".join(f"{way} {points:+.1f}" for way, points in others.items()))
    photographs = [row for title, row in probe.items() if title != "digits" and ceiling in row]
    if photographs:
        mine, low, high = (np.mean([row[way] for row in photographs]) for way in (name, "raw pixels", ceiling))
        print(f"  mean without digits {mine:.3f}; raw pixels {low:.3f}, {ceiling} {high:.3f}", end="; ")
        print(f"{(mine - low) / (high - low):.0%} of the way")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="digits, or folders")
    parser.add_argument("--backbones", nargs="+", default=["sktl/tiny"])
    parser.add_argument("--ceiling", default="mobilenetv2_100")
    parser.add_argument("--ceiling-weights", help="weights file of the ceiling; without it, it is left out")
    parser.add_argument("--ceiling-size", type=int, default=224)
    parser.add_argument("--shots", type=int, nargs="*", default=[5], help="images per class")
    parser.add_argument("--draws", type=int, default=5, help="of a few images per class")
    parser.add_argument("--epochs", type=int, nargs="*", default=[1, 5], help="of training all weights")
    parser.add_argument("--strategy", default="lp_ft", help="how backbones are fine-tuned (%(default)s)")
    parser.add_argument("--learning-rate", type=float, help="of the head in fine-tuning (the strategy's own)")
    parser.add_argument("--backbone-lr-scale", type=float, help="the backbone's share of it (the strategy's own)")
    parser.add_argument("--seeds", type=int, default=3, help="of random weights and of training")
    parser.add_argument("--results", type=Path, help="JSON file that keeps what was measured")
    arguments = parser.parse_args()

    warnings.simplefilter("ignore", ConvergenceWarning)  # at the weakest penalties, which are seldom chosen
    results = Results(arguments.results)
    for name in arguments.sets:
        title, data = Path(name).name, read_digits() if name == "digits" else read_folder(Path(name))
        print(f"{title}: {len(data[0])} training images, {len(data[1])} test images", flush=True)
        for question, row, score in make_rows(data, arguments):
            results.add(question, title, row, score)
    print_tables(results.values["features"], "")
    print_tables(results.values["training"], "all weights trained, ")
    for name in arguments.backbones:
        print_targets(name, results.values["features"], arguments.ceiling)


if __name__ == "__main__":
    main()
