"""What does a grid search over a pipeline with a pretrained network cost beyond embedding each image once?

``GridSearchCV`` over a pipeline of :class:`~sktl.PretrainedFeatureTransformer` and a logistic regression, 5 folds and 8
values, against embedding all images once and searching on the ready matrix, both from files::

    python docs/benchmarks/grid_search.py --images 500 --repeats 3
"""

import argparse
import statistics
import tempfile
import time

from embedding_speed import write_photos
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktl import PretrainedFeatureTransformer
from sktl.embedding import default_store

GRID = {"logisticregression__C": [10.0**k for k in range(-7, 1)]}


def make_steps():
    """Return the classic part of both ways."""
    return StandardScaler(), LogisticRegression(max_iter=1000)


def search_over_pipeline(backbone, paths, labels):
    """Embed inside the search."""
    pipeline = make_pipeline(PretrainedFeatureTransformer(backbone, weights=None), *make_steps())
    GridSearchCV(pipeline, GRID, cv=5).fit(paths, labels)


def search_on_matrix(backbone, paths, labels):
    """Embed once, then search."""
    embeddings = PretrainedFeatureTransformer(backbone, weights=None).fit_transform(paths)
    GridSearchCV(make_pipeline(*make_steps()), GRID, cv=5).fit(embeddings, labels)


def seconds(way, *arguments):
    """Time a way with an empty store; the network is loaded and checked already."""
    default_store().clear()
    started = time.perf_counter()
    way(*arguments)
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbones", nargs="+", default=["mobilenetv3_small_100", "resnet50"])
    arguments = parser.parse_args()
    print("| backbone | pipeline, s | once + matrix, s | ratio |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(folder, arguments.images)
        labels = [index % 5 for index in range(len(paths))]
        for backbone in arguments.backbones:
            search_on_matrix(backbone, paths[:40], labels[:40])
            times = [
                (
                    seconds(search_over_pipeline, backbone, paths, labels),
                    seconds(search_on_matrix, backbone, paths, labels),
                )
                for _ in range(arguments.repeats)
            ]
            pipeline, matrix = (statistics.median(column) for column in zip(*times, strict=True))
            ratio = statistics.median(first / second for first, second in times)
            print(f"| {backbone} | {pipeline:.1f} | {matrix:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
