"""The tasks that settings are judged by: digits, and generated pictures of unseen formulas and palettes.

Every task is a tuple: training images, test images, training labels, test labels.
"""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from .canvas import N_CLASSES
from .generate import DRAW

FAMILIES = ("creatures", "contours", "fields", "textures", "fractals")


def as_image(picture):
    """Make an image of an array of shape (H, W, 3) with values in [0, 1]."""
    return Image.fromarray((255 * np.clip(picture, 0, 1)).astype(np.uint8))


def split_in_half(images, labels):
    """Half of every class for training, half for testing."""
    return train_test_split(images, labels, test_size=0.5, stratify=labels, random_state=0)


def digits_task():
    """Scikit-learn's digits."""
    pixels, labels = load_digits(return_X_y=True)
    return split_in_half([Image.fromarray((row.reshape(8, 8) * 255 / 16).astype(np.uint8)) for row in pixels], labels)


def unseen_formulas_task(classes_per_family=10, images_per_class=40, seed=1):
    """Which formula drew the picture: 50 formulas that no pretraining run has seen."""
    images, labels = [], []
    for family in FAMILIES:
        for label in range(N_CLASSES[family], N_CLASSES[family] + classes_per_family):
            for i in range(images_per_class):
                images.append(as_image(DRAW[family](label, np.random.default_rng([seed, label, i]))))
                labels.append(f"{family}/{label}")
    return split_in_half(images, labels)


def palettes_task(n_palettes=24, images_per_palette=60, noise=0.06, seed=2):
    """Which palette a picture is painted with: any unseen formula, the palette's three colours off by a little noise.

    The grey values of the picture choose the colour, so form tells nothing.
    """
    palettes = np.random.default_rng(seed).uniform(0, 1, (n_palettes, 3, 3))
    images, labels = [], []
    for label, palette in enumerate(palettes):
        for i in range(images_per_palette):
            rng = np.random.default_rng([seed, label, i])
            family = rng.choice(FAMILIES)
            grey = DRAW[family](N_CLASSES[family] + int(rng.integers(10)), rng).mean(axis=-1)
            rank = np.searchsorted(np.sort(grey, axis=None), grey) / grey.size
            colours = palette + rng.normal(0, noise, (3, 3)) + rng.normal(0, noise, 3)
            painted = np.stack([np.interp(rank, [0, 0.5, 1], colours[:, c]) for c in range(3)], axis=-1)
            images.append(as_image(painted))
            labels.append(label)
    return split_in_half(images, labels)
