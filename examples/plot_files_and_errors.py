"""
From files to predictions
=========================

Real pictures are files of different sizes in folders, and some of them are broken. Here we draw such a collection,
learn to tell its classes apart, see what happens to a broken file, and store the model.
"""

# %%
# A collection
# ------------
#
# Three folders, one per class, 20 drawings in each.

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

rng = np.random.default_rng(0)
collection = Path(tempfile.mkdtemp())


def draw(kind):
    width, height = (int(length) for length in rng.integers(60, 120, 2))
    image = Image.new("RGB", (width, height), tuple(rng.integers(0, 90, 3).tolist()))
    pen = ImageDraw.Draw(image)
    left, top = rng.uniform(0.1, 0.4, 2) * (width, height)
    size = rng.uniform(0.35, 0.5) * min(width, height)
    box = (left, top, left + size, top + size)
    colour = tuple(rng.integers(130, 256, 3).tolist())
    if kind == "disc":
        pen.ellipse(box, fill=colour)
    elif kind == "ring":
        pen.ellipse(box, outline=colour, width=5)
    else:
        pen.rectangle(box, fill=colour)
    return image


for kind in ("disc", "ring", "square"):
    (collection / kind).mkdir()
    for number in range(20):
        draw(kind).save(collection / kind / f"{number:02d}.png")

# %%
# The rows of ``X`` are file names, the labels are the names of the folders.

import matplotlib.pyplot as plt

files = sorted(collection.glob("*/*.png"))
labels = [file.parent.name for file in files]

fig, axes = plt.subplots(3, 6, figsize=(7, 3.6), layout="constrained")
for row, kind in zip(axes, ("disc", "ring", "square"), strict=True):
    for ax, file in zip(row, sorted((collection / kind).iterdir()), strict=False):
        ax.imshow(Image.open(file))
        ax.axis("off")

# %%
# A model
# -------
#
# Nothing is read before it is needed, and preprocessing comes from the backbone.

from sklearn.model_selection import cross_val_score, train_test_split

from sktl import FineTuneClassifier

train_files, test_files, train_labels, test_labels = train_test_split(
    files, labels, test_size=0.3, stratify=labels, random_state=0
)
model = FineTuneClassifier("sktl/tiny", strategy="feature_extraction", random_state=0)
print("cross-validated:", cross_val_score(model, train_files, train_labels, cv=3).round(2))
model.fit(train_files, train_labels)
print("test:", round(model.score(test_files, test_labels), 2))

# %%
# A broken file
# -------------
#
# We truncate a file, so it is no longer an image. The error gives the row, the name of the file, and what is wrong with
# it.

broken = collection / "broken.png"
broken.write_bytes(files[0].read_bytes()[:100])
try:
    model.predict([files[0], broken, files[1]])
except ValueError as error:
    print(type(error).__name__, str(error).replace(str(collection), ""), sep=": ")

# %%
# A stored model
# --------------
#
# A fitted model is a pickle of plain weights and settings: it needs neither the images nor the backbone's own weights.
# Load only pickles from people you trust.

import pickle

stored = pickle.dumps(model)
again = pickle.loads(stored)
print(f"{len(stored) / 1e6:.1f} MB, same predictions: {(again.predict(files) == model.predict(files)).all()}")
