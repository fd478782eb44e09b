"""
Learn from more images than memory holds
========================================

``sktl embed`` turns a table of images of any length into a folder of embeddings, file by file. Models with a
``partial_fit`` learn from one file at a time. How much accuracy does this lose compared with a fit on all files at
once? See :doc:`/user_guide/scaling` for more.
"""

# %%
# A table of images
# -----------------
#
# The handwritten digits stand in for the large table: one column of encoded images, one of labels, in no particular
# order. Every fifth row is kept for testing.

import io
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits

folder = Path(tempfile.mkdtemp())


def encode(pixels):
    file = io.BytesIO()
    Image.fromarray((pixels * 255 / 16).astype("uint8")).save(file, "PNG")
    return file.getvalue()


digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
table = pd.DataFrame({"image": [encode(pixels) for pixels in digits.images], "label": digits.target}).iloc[order]
is_test = np.arange(len(table)) % 5 == 0
table[~is_test].to_parquet(folder / "train.parquet")
table[is_test].to_parquet(folder / "test.parquet")

# %%
# Embeddings in files
# -------------------
#
# We run ``sktl embed`` on the command line. A file appears only when it is complete. If the command is stopped, the
# next run goes on from there; after a complete run, a second one has nothing to do.

import subprocess
import sys


def embed(name):
    options = ["--column", "image", "--keep", "label", "--image-size", "32", "--rows-per-shard", "96"]
    command = [sys.executable, "-m", "sktl", "embed", f"{name}.parquet", "--out", f"{name}-embeddings", *options]
    print("$ sktl", *command[3:])
    print(subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout)


embed("train")
embed("train")
embed("test")

# %%
# One file at a time
# ------------------
#
# A first pass learns the scale of the embeddings, which stochastic gradient descent needs; two more train the model.
# Only one file is in memory at a time.

from sklearn.linear_model import SGDClassifier
from sklearn.preprocessing import StandardScaler

from sktl.distributed import read_shards

scaler = StandardScaler()
for shard in read_shards(folder / "train-embeddings"):
    scaler.partial_fit(shard.embeddings)

test_shards = list(read_shards(folder / "test-embeddings"))
X_test = scaler.transform(np.concatenate([shard.embeddings for shard in test_shards]))
y_test = np.concatenate([shard.columns["label"] for shard in test_shards])

settings = {"loss": "log_loss", "alpha": 1e-3, "average": True, "random_state": 0}
head, n_seen, scores = SGDClassifier(**settings), [], []
for _ in range(2):
    for shard in read_shards(folder / "train-embeddings"):
        head.partial_fit(scaler.transform(shard.embeddings), shard.columns["label"], classes=range(10))
        n_seen.append((n_seen or [0])[-1] + len(shard.names))
        scores.append(head.score(X_test, y_test))

# %%
# All at once, for comparison.

shards = list(read_shards(folder / "train-embeddings"))
X = scaler.transform(np.concatenate([shard.embeddings for shard in shards]))
y = np.concatenate([shard.columns["label"] for shard in shards])
at_once = SGDClassifier(**settings).fit(X, y).score(X_test, y_test)
print(f"in files: {scores[-1]:.3f}, at once: {at_once:.3f}")

# %%
# The picture
# -----------

import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.plot(n_seen, scores, marker="o", markersize=4, label="partial_fit, one file at a time")
ax.axhline(at_once, color="gray", linestyle="--", linewidth=1, label="fit, all at once")
ax.axvline(len(y), color="gray", linewidth=0.5)
ax.text(len(y), 0.5, " second pass", color="gray", transform=ax.get_xaxis_transform())
ax.set(xlabel="images learnt from", ylabel="accuracy on the test images")
ax.legend(loc="lower right")
plt.show()
