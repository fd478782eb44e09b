"""What all pictures share: the classes, coordinates, colours and layers."""

import math
import string
from functools import cache, lru_cache

import numpy as np

SIZE = 72
"""Side of a picture in pixels."""

CHARACTERS = string.digits + string.ascii_letters + "!?&@#$%+=*/<>{}[]§€" + "αβγδεθλμπσφψωΓΔΘΛΞΣΦΨΩ" + "БГДЖИЛЦШЭЯ"
N_CLASSES = {
    "glyphs": len(CHARACTERS),
    "creatures": 240,
    "contours": 120,
    "fields": 120,
    "textures": 120,
    "fractals": 80,
}


@cache
def grid():
    """Coordinates of the pixels, each of shape (SIZE, SIZE), from -1 to 1."""
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    return np.meshgrid(axis, axis)


@lru_cache(maxsize=4096)
def formula(family, label):
    """Seed of the formula that defines a class; fixed for all time, whatever the seed of the images."""
    return int(np.random.SeedSequence([list(N_CLASSES).index(family), label, 20_261]).generate_state(1)[0])


def formula_rng(family, label):
    """Generator that draws the numbers of a class's formula."""
    return np.random.default_rng(formula(family, label))


def unit(field):
    """Stretch a field to [0, 1]."""
    low, high = field.min(), field.max()
    return (field - low) / (high - low + 1e-6)


def rotate(x, y, angle):
    """Turn coordinates by an angle in radians."""
    c, s = math.cos(angle), math.sin(angle)
    return c * x - s * y, s * x + c * y


def random_view(rng, zoom=(0.8, 1.5), shift=0.25, turn=np.pi, shear=0.25):
    """Coordinates of the pixels as seen from a random place."""
    x, y = grid()
    x, y = rotate(x, y, rng.uniform(-turn, turn))
    x = x + rng.uniform(-shear, shear) * y
    scale = rng.uniform(*zoom)
    return scale * x + rng.uniform(-shift, shift), scale * y * rng.uniform(0.85, 1.18) + rng.uniform(-shift, shift)


def random_colour(rng):
    """One RGB colour; half of them muted, as most natural colours are."""
    colour = rng.uniform(0, 1, 3)
    return colour if rng.random() < 0.5 else colour.mean() + 0.35 * (colour - colour.mean())


def paint(field, rng, n_colours=None):
    """Map a field in [0, 1] to colours through a random piecewise-linear palette."""
    n_colours = n_colours or rng.integers(2, 6)
    palette = np.stack([random_colour(rng) for _ in range(n_colours)])
    stops = np.linspace(0, 1, n_colours)
    return np.stack([np.interp(field, stops, palette[:, c]) for c in range(3)], axis=-1).astype(np.float32)


def blend(below, above, mask):
    """Lay one picture over another through a mask of shape (SIZE, SIZE)."""
    return below + (above - below) * mask[..., None]
