"""What a network gains on a new task, and what it keeps of the old one: the comparison of Li and Hoiem (2016).

The old task is ImageNet: the backbone brings its classifier, and photographs of classes that ImageNet knows measure it.
The new task is a folder of flowers. Accuracy on both, for each way, mean and standard deviation over seeds::

    tar -xf ../shared/data/images/caltech20.tar -C /tmp && tar -xf ../shared/data/images/flowers5.tar -C /tmp
    python docs/benchmarks/forgetting.py --weights ../shared/data/weights/mobilenetv2_100.qnnpack_dequant.safetensors \\
        --old /tmp/caltech20 --new /tmp/flowers5 --seeds 3

Each folder holds ``train/<class>/<file>`` and ``test/<class>/<file>``. ``--per-class``, ``--test-per-class``,
``--epochs`` and ``--image-size`` make it smaller.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from sktl import FineTuneClassifier
from sktl.backbones import load_backbone
from sktl.strategies import JointTraining, LearningWithoutForgetting

# Folders of Caltech-101, and the beginning of the names of the same things in ImageNet.
IN_IMAGENET = {
    "Leopards": "leopard,",
    "cougar_face": "cougar,",
    "electric_guitar": "electric guitar",
    "ewer": "pitcher, ewer",
    "grand_piano": "grand piano",
    "kangaroo": "wallaby, brush kangaroo",
    "llama": "llama",
    "scorpion": "scorpion",
    "starfish": "starfish",
    "trilobite": "trilobite",
    "umbrella": "umbrella",
}


def read(folder, part, per_class, rng, names=None):
    """Return files and labels of a part of a set, so many per class; by ``names`` labels are translated or left out."""
    files, labels = [], []
    for directory in sorted((folder / part).iterdir()):
        if names is not None and directory.name not in names:
            continue
        found = sorted(str(path) for path in directory.iterdir())
        chosen = rng.permutation(len(found))[:per_class]
        files += [found[place] for place in chosen]
        labels += [directory.name if names is None else names[directory.name]] * len(chosen)
    return files, np.array(labels, dtype=object)


def old_labels(backbone):
    """Return the full ImageNet label for each folder of the old task."""
    classes = list(backbone.original_head.classes)
    labels = {}
    for folder, beginning in IN_IMAGENET.items():
        matches = [name for name in classes if str(name).startswith(beginning)]
        assert len(matches) == 1, (folder, matches)
        labels[folder] = matches[0]
    return labels


def make_ways(old_train):
    """Return the strategies by name."""
    return {
        "feature extraction": "feature_extraction",
        "fine-tuning": "fine_tuning",
        "head first, then fine-tuning": "lp_ft",
        "learning without forgetting": LearningWithoutForgetting(),
        "joint training": JointTraining(*old_train),
    }


def measure(strategy, options, new, old_test):
    """Return accuracy on the new task and on the old one, and seconds of fit."""
    (X, y), (X_test, y_test) = new
    started = time.perf_counter()
    model = FineTuneClassifier(strategy=strategy, **options).fit(X, y)
    seconds = time.perf_counter() - started
    return model.score(X_test, y_test), model.score_original(*old_test), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--new", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=100, help="training images per class")
    parser.add_argument("--test-per-class", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()

    labels = old_labels(load_backbone(arguments.backbone, arguments.weights))
    results = {}
    for seed in range(arguments.seeds):
        rng = np.random.default_rng(seed)
        new = [
            read(arguments.new, "train", arguments.per_class, rng),
            read(arguments.new, "test", arguments.test_per_class, rng),
        ]
        old_train = read(arguments.old, "train", arguments.per_class, rng, labels)
        old_test = read(arguments.old, "test", arguments.test_per_class, rng, labels)
        options = {
            "backbone": arguments.backbone,
            "weights": arguments.weights,
            "image_size": arguments.image_size,
            "max_epochs": arguments.epochs,
            "random_state": seed,
        }
        for name, strategy in make_ways(old_train).items():
            results.setdefault(name, []).append(measure(strategy, options, new, old_test))
            print(f"seed {seed}  {name:30}  " + "  ".join(f"{value:.3f}" for value in results[name][-1]), flush=True)
    print(f"\n{'way':30}  {'new task':>13}  {'old task':>13}  seconds")
    for name, rows in results.items():
        mean, std = np.mean(rows, axis=0), np.std(rows, axis=0)
        print(f"{name:30}  {mean[0]:.3f} ± {std[0]:.3f}  {mean[1]:.3f} ± {std[1]:.3f}  {mean[2]:7.0f}")


if __name__ == "__main__":
    main()
