"""How far to go from the pretrained weights to the fine-tuned ones?

Accuracy at several points of the line from the linear probe (0) to the fine-tuned network (1), each from the same fit,
with few and with more images per class. Nothing of the sets' test parts is read: the images are scored on others of
their training parts, ``--held`` per class. A set is a folder that holds ``train/<class>/<file>``, of square images such
as those that ``transfer_recipes.py --results FILE.jsonl`` leaves in ``FILE.images``::

    python docs/benchmarks/wise_ft_alpha.py FILE.images/caltech20-96 --held 20 --per-class 5 --seeds 3 \\
        --weights ../shared/data/weights/mobilenetv2_100.qnnpack_dequant.safetensors

"all" per class are those that are not held out.
"""

import argparse
from pathlib import Path

import numpy as np

from sktl import FineTuneClassifier
from sktl.strategies import WiseFT
from sktl.training import trained_backbone

ALPHAS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


class Ends(WiseFT):
    """Go all of the way, and keep the weights of both ends."""

    def finish(self, network):
        starts = {f"backbone.{name}": value for name, value in self._initial.items()}
        starts |= {f"head.{name}": value for name, value in self._initial_head.items()}
        tuned = [*network.backbone.named_parameters("backbone"), *network.head.named_parameters("head")]
        self.ends_ = {name: (starts[name].clone(), end.detach().clone()) for name, end in tuned}
        super().finish(network)


def split(folder, per_class, held, seed):
    """Return files and labels to learn from, and others, drawn at random from the training part."""
    rng = np.random.default_rng(100 + seed)  # not the draws of transfer_recipes.py
    learnt, scored = [], []
    for label, directory in enumerate(sorted((folder / "train").iterdir())):
        files = rng.permutation(sorted(map(str, directory.glob("*"))))
        scored += [(file, label) for file in files[:held]]
        learnt += [(file, label) for file in files[held:][:per_class]]
    return [tuple(map(list, zip(*rows, strict=True))) for rows in (learnt, scored)]


def accuracies(arguments, seed):
    """Fit once; return the accuracy at each point of the line."""
    (files, labels), held_out = split(arguments.folder, arguments.per_class, arguments.held, seed)
    model = FineTuneClassifier(
        arguments.backbone,
        Ends(alpha=1.0),
        weights=arguments.weights,
        image_size=arguments.image_size,
        data_config={"crop_pct": 1.0},
        max_epochs=arguments.epochs,
        random_state=seed,
    ).fit(files, labels)
    network = model.net_.module_
    tuned = dict([*network.backbone.named_parameters("backbone"), *network.head.named_parameters("head")])
    scores = []
    for alpha in ALPHAS:
        for name, (start, end) in model.strategy_.ends_.items():
            tuned[name].data.copy_(start.lerp(end, alpha))
        model.backbone_ = trained_backbone(model.backbone_, network)
        scores.append(model.score(*held_out))
    return scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-class", type=lambda text: None if text == "all" else int(text), default=20)
    parser.add_argument("--held", type=int, default=40, help="images per class to score on")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    scores = np.mean([accuracies(arguments, seed) for seed in range(arguments.seeds)], axis=0)
    print("| " + " | ".join(map(str, ALPHAS)) + " |\n|" + "---:|" * len(ALPHAS))
    print("| " + " | ".join(f"{score:.3f}" for score in scores) + " |")


if __name__ == "__main__":
    main()
