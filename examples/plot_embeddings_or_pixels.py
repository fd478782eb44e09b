"""
Embeddings or pixels?
=====================

How much does a pretrained network add to the raw pixels? We hide most labels of scikit-learn's handwritten digits and
train the same classic model twice: on the raw pixels, and on the embeddings of the frozen backbone ``"sktl/tiny"``,
which has never seen a digit from this data set.
"""

# sphinx_gallery_thumbnail_number = 2

# %%
# The images are 8 x 8 pixels with 17 shades of grey; we convert them to 8-bit images, as in a file, and add an axis for
# their one channel.

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

digits = load_digits()
images = (digits.images * 255 / 16).astype("uint8")[..., None]
X, X_test, y, y_test = train_test_split(
    images,
    digits.target,
    train_size=800,
    test_size=400,
    stratify=digits.target,
    random_state=0,
)

fig, axes = plt.subplots(2, 8, figsize=(8, 2.2), layout="constrained")
for ax, image in zip(axes.flat, X, strict=False):
    ax.imshow(image, cmap="gray_r")
    ax.axis("off")

# %%
# Two models
# ----------
#
# They differ in one step. The transformer resizes the images, normalises them as in the backbone's training, and
# returns one row of numbers per image.

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sktl import PretrainedFeatureTransformer


def flatten(images):
    return images.reshape(len(images), -1)


def classifier():
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))


models = {
    "pixels": make_pipeline(FunctionTransformer(flatten), classifier()),
    "embeddings": make_pipeline(PretrainedFeatureTransformer("sktl/tiny"), classifier()),
}

# %%
# Fewer and fewer labels
# ----------------------
#
# Every subset is drawn five times; the bands show how much the accuracy depends on the luck of the draw. The embeddings
# of the 1200 images are computed once, not once per fit, because sktl keeps them.

import numpy as np
from sklearn.model_selection import StratifiedShuffleSplit

sizes = [20, 40, 80, 160, 320]
accuracy = {name: np.empty((len(sizes), 5)) for name in models}
for row, size in enumerate(sizes):
    draws = StratifiedShuffleSplit(n_splits=5, train_size=size, random_state=0).split(X, y)
    for column, (subset, _) in enumerate(draws):
        for name, model in models.items():
            accuracy[name][row, column] = model.fit(X[subset], y[subset]).score(X_test, y_test)

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for name, values in accuracy.items():
    ax.plot(sizes, values.mean(axis=1), marker="o", label=name)
    ax.fill_between(sizes, values.min(axis=1), values.max(axis=1), alpha=0.2)
ax.set(xscale="log", xlabel="labelled images (ten classes)", ylabel="test accuracy")
ax.set_xticks(sizes, labels=sizes)
ax.minorticks_off()
ax.legend()
plt.show()
