"""GridSearchCV over ways of transfer beside each way alone, trained long enough for sets to differ in what they need.

Test accuracy of ``"feature_extraction"``, ``"lp_ft"``, ``"wise_ft"`` and half of the way, each alone, and of the one
that three folds choose, on folders of ``train/<class>/<file>`` and ``test/<class>/<file>``::

    for set in cifar10_small caltech20 flowers5; do tar -xf ../shared/data/images/$set.tar -C /tmp; done
    python docs/benchmarks/strategy_search.py /tmp/cifar10_small /tmp/caltech20 /tmp/flowers5 \\
        --weights ../shared/data/weights/mobilenetv2_100.qnnpack_dequant.safetensors \\
        --epochs 20 --seeds 0 1 2 --results /tmp/searches.jsonl
    python docs/benchmarks/strategy_search.py --results /tmp/searches.jsonl --table

The last three ways are one training that goes back by different shares, to the last bit. So each fold, and all images,
are trained on once for the three, and the search takes a third of the time that it would take by itself. Images,
weights and settings are those of ``transfer_recipes.py``. A finished set and seed is a line of ``--results``, and is
not run again.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import torch
from recipes import estimator
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from transfer_recipes import prepare, read, written
from wise_ft_alpha import Ends

from sktl.training import trained_backbone

SETTINGS = ("backbone", "image_size", "epochs", "batch_size", "per_class")
WAYS = {"feature_extraction": 0.0, "lp_ft": 1.0, "wise_ft": "auto", "WiseFT(alpha=0.5)": 0.5}


class TrainedOnce(ClassifierMixin, BaseEstimator):
    """FineTuneClassifier with one of the ways; those that differ in how far they go back share what they train."""

    trained: ClassVar[dict] = {}

    def __init__(self, trial, strategy="wise_ft"):
        self.trial = trial
        self.strategy = strategy

    def fit(self, X, y):
        """Train, unless another way has trained on these rows."""
        self.classes_ = np.unique(y)
        self.share_ = WAYS[self.strategy]
        training = "head" if self.share_ == 0 else "network", tuple(X)
        if training not in self.trained:
            way = "feature_extraction" if self.share_ == 0 else Ends()
            self.trained[training] = estimator(self.trial, strategy=way).fit(X, y)
        self.model_ = self.trained[training]
        return self

    def predict(self, X):
        """Go as far as the way goes, and predict."""
        if self.share_ != 0:
            go(self.model_, self.model_.strategy_.alpha_ if self.share_ == "auto" else self.share_)
        return self.model_.predict(X)


def go(model, share):
    """Set the weights of a model at a share of the way from its start to its end."""
    network = model.net_.module_
    tuned = dict([*network.backbone.named_parameters("backbone"), *network.head.named_parameters("head")])
    for name, (start, end) in model.strategy_.ends_.items():
        tuned[name].data.copy_(start.lerp(end, share))
    model.backbone_ = trained_backbone(model.backbone_, network)


def run_trial(settings):
    """Search on one set with one seed, and fit each way alone; return accuracies on the test images."""
    torch.set_num_threads(1)
    trial = SimpleNamespace(**settings)
    files, labels = read(Path(trial.folder) / "train", trial.per_class, trial.seed)
    test_files, test_labels = read(Path(trial.folder) / "test", None, 0)
    folds = StratifiedKFold(3, shuffle=True, random_state=trial.seed)
    search = GridSearchCV(TrainedOnce(trial), {"strategy": list(WAYS)}, cv=folds).fit(files, labels)
    ways = {way: TrainedOnce(trial, way).fit(files, labels).score(test_files, test_labels) for way in WAYS}
    scores = dict(zip(WAYS, search.cv_results_["mean_test_score"].tolist(), strict=True))
    chosen = search.best_params_["strategy"]
    searched = search.score(test_files, test_labels)
    return {**settings, "test": ways, "folds": scores, "chosen": chosen, "searched": searched, "rows": len(files)}


def key(result):
    """Return what tells a trial from others."""
    return tuple(str(result[name]) for name in ("set", "seed", "weights", *SETTINGS))


def run(arguments):
    """Run what is not yet in the file of results."""
    shared = {name: getattr(arguments, name) for name in SETTINGS}
    shared["weights"] = str(Path(arguments.weights).resolve())
    trials = []
    for seed, source in product(arguments.seeds, arguments.sets):
        folder = arguments.results.with_suffix(".images") / f"{source.name}-{arguments.image_size}"
        prepare(source, folder, arguments.image_size)
        trials.append({"set": source.name, "folder": str(folder), "seed": seed, **shared})
    done = set(map(key, written(arguments.results)))
    with ProcessPoolExecutor(arguments.jobs, max_tasks_per_child=1) as processes:
        running = [processes.submit(run_trial, trial) for trial in trials if key(trial) not in done]
        for finished in as_completed(running):
            result = finished.result()
            with arguments.results.open("a") as file:
                file.write("\n" + json.dumps(result))  # first the end of a line that may have been cut off
            print(f"{result['set']}, seed {result['seed']}: {result['chosen']}: {result['searched']:.4f}", flush=True)


def print_table(results):
    """Print the mean accuracy of each way alone, and of the search, by set and over all sets."""
    sets = sorted({result["set"] for result in results})
    print(f"{'':20}" + "".join(f"{name:>18}" for name in [*sets, "mean"]))
    for way in [*WAYS, "searched"]:
        cells = []
        for name in sets:
            found = [result for result in results if result["set"] == name]
            scores = [result["searched"] if way == "searched" else result["test"][way] for result in found]
            cells.append((np.mean(scores), f"{np.mean(scores):.4f} ± {np.std(scores):.4f}"))
        mean = np.mean([score for score, _ in cells])
        print(f"{way:20}" + "".join(f"{cell:>18}" for _, cell in cells) + f"{mean:>18.4f}")
    for result in results:
        print(f"{result['set']}, seed {result['seed']}: {result['chosen']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, nargs="*")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", help="a .safetensors file of the backbone's weights")
    parser.add_argument("--per-class", type=int, default=None, help="training images; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("strategy_search.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the table of the results and stop")
    arguments = parser.parse_args()
    print_table(written(arguments.results)) if arguments.table else run(arguments)


if __name__ == "__main__":
    sys.exit(main())
