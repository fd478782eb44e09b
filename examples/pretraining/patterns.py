"""Patterns that fill a picture: noise, gratings, cells, dead leaves, coordinate networks and fractals."""

from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from .canvas import N_CLASSES, SIZE, blend, formula_rng, grid, paint, random_colour, random_view, rotate, unit

ACTIVATIONS = (np.sin, np.cos, np.tanh, np.abs, lambda z: np.exp(-(z**2)), lambda z: np.abs(np.sin(z)))
"""What a unit of a coordinate network may compute."""


@cache
def frequencies():
    """Length of the frequency vector of every coefficient of a 2-D real FFT, and its two parts."""
    fy = np.fft.fftfreq(SIZE)[:, None] * SIZE
    fx = np.fft.rfftfreq(SIZE)[None, :] * SIZE
    return np.sqrt(fx**2 + fy**2).astype(np.float32), fx.astype(np.float32), fy.astype(np.float32)


def coloured_noise(rng, exponent, stretch=1.0, angle=0.0, low=1.0):
    """Random field whose amplitude falls with frequency as a power law, optionally stretched along one direction."""
    _, fx, fy = frequencies()
    u, v = rotate(fx, fy, angle)
    amplitude = np.maximum(np.sqrt(u**2 + (stretch * v) ** 2), low) ** -exponent
    amplitude[0, 0] = 0
    phases = np.exp(2j * np.pi * rng.random(amplitude.shape, dtype=np.float32))
    return unit(np.fft.irfft2(amplitude * phases, s=(SIZE, SIZE)).astype(np.float32))


def grating(rng, frequency, angle, sharpness, x, y):
    """Stripes, from soft waves to hard bars."""
    u, _ = rotate(x, y, angle)
    return 0.5 + 0.5 * np.tanh(sharpness * np.sin(np.pi * frequency * u + rng.uniform(0, 6.28))) / np.tanh(sharpness)


def cells(rng, n_cells, x, y, border):
    """Voronoi cells: distance to the nearest seed, or the gap between the two nearest."""
    seeds = rng.uniform(-1.4, 1.4, (n_cells, 2)).astype(np.float32)
    distance = np.hypot(x[..., None] - seeds[:, 0], y[..., None] - seeds[:, 1])
    nearest = np.partition(distance, 1, axis=-1)
    return unit(nearest[..., 1] - nearest[..., 0] if border else nearest[..., 0])


def dead_leaves(rng, exponent, kind, n_leaves=60):
    """Overlapping discs, boxes or triangles with power-law sizes: the simplest world with occlusion."""
    image = Image.new("RGB", (SIZE, SIZE))
    draw = ImageDraw.Draw(image)
    sizes = np.clip(3 * rng.uniform(0.01, 1, n_leaves) ** (-1 / exponent), 3, SIZE / 2)
    for size in np.sort(sizes)[::-1]:
        x, y = rng.uniform(0, SIZE, 2)
        colour = tuple((255 * random_colour(rng)).astype(int).tolist())
        if kind == 0:
            draw.ellipse([x - size, y - size, x + size, y + size], fill=colour)
        else:
            draw.regular_polygon((x, y, size), 2 + kind, rotation=float(rng.uniform(0, 360)), fill=colour)
    return np.asarray(image, dtype=np.float32) / 255


def texture_class(label, rng):
    """Draw one instance of texture ``label``."""
    fixed = formula_rng("textures", label)
    kind = label % 5
    x, y = random_view(rng, turn=0.4)
    if kind == 0:
        stretch = fixed.choice([1.0, 3.0, 6.0])
        angle = fixed.uniform(0, np.pi) + rng.normal(0, 0.1)
        field = coloured_noise(rng, fixed.uniform(0.3, 2.2), stretch, angle, int(fixed.integers(1, 9)))
    elif kind == 1:
        n_waves, waves = fixed.integers(1, 4), fixed.uniform(0, 1, (3, 3))
        field = sum(grating(rng, 2 + 12 * a, np.pi * b, 0.3 + 5 * c, x, y) for a, b, c in waves[:n_waves])
    elif kind == 2:
        field = cells(rng, int(fixed.integers(8, 60)), x, y, border=fixed.random() < 0.5)
        field = field ** fixed.uniform(0.4, 2)
    elif kind == 3:
        return dead_leaves(rng, fixed.uniform(0.8, 3), int(fixed.integers(0, 4)), int(fixed.integers(20, 120)))
    else:
        first, second, angle = fixed.uniform(3, 12), fixed.uniform(3, 12), fixed.uniform(0.6, 1.6)
        spots = grating(rng, first, 0, 2, x, y) * grating(rng, second, angle, 2, x, y)
        field = spots + fixed.uniform(0, 0.8) * coloured_noise(rng, fixed.uniform(0.8, 2))
    return paint(unit(field), rng)


def random_texture(rng):
    """Ground or skin: anything from one colour to a texture of a random class."""
    kind = rng.random()
    if kind < 0.2:
        return np.broadcast_to(random_colour(rng).astype(np.float32), (SIZE, SIZE, 3))
    if kind < 0.45:
        x, y = grid()
        u, _ = rotate(x, y, rng.uniform(0, 6.28))
        return paint(unit(u), rng, 2)
    if kind < 0.75:
        return paint(coloured_noise(rng, rng.uniform(1, 2.2), rng.choice([1.0, 1.0, 3.0]), rng.uniform(0, 3.14)), rng)
    return texture_class(int(rng.integers(N_CLASSES["textures"])), rng)


def field_class(label, rng):
    """Draw one instance of the coordinate network ``label``."""
    fixed = formula_rng("fields", label)
    x, y = random_view(rng, zoom=(0.9, 1.6), shift=0.35)
    values = np.stack([x, y, np.hypot(x, y), np.ones_like(x)], axis=-1)
    for width, gain in ((10, 3.0), (10, 1.8), (3, 1.5)):
        weights = fixed.normal(0, gain / np.sqrt(values.shape[-1] / 3), (values.shape[-1], width)).astype(np.float32)
        weights *= 1 + rng.normal(0, 0.06, weights.shape).astype(np.float32)
        values = values @ weights
        for column in range(width):
            values[..., column] = ACTIVATIONS[fixed.integers(len(ACTIVATIONS))](values[..., column])
    if rng.random() < 0.5:
        return paint(unit(values[..., 0]), rng)
    mix = np.stack([random_colour(rng) for _ in range(3)]).astype(np.float32)
    return np.clip(np.stack([unit(values[..., c]) for c in range(3)], axis=-1) @ mix / 1.5, 0, 1)


@lru_cache(maxsize=512)
def iterated_functions(label):
    """Contracting affine maps of one iterated function system, and how often each is used."""
    fixed = formula_rng("fractals", label)
    n_maps = int(fixed.integers(2, 6))
    maps = []
    for _ in range(n_maps):
        left, right = (np.linalg.qr(fixed.normal(size=(2, 2)))[0] for _ in range(2))
        singular = np.sort(fixed.uniform(0.25, 0.85, 2))[::-1] * (0.95 if n_maps < 4 else 0.8)
        maps.append(left @ np.diag(singular) @ right)
    matrices, offsets = np.stack(maps), fixed.uniform(-1, 1, (n_maps, 2))
    weights = np.abs(np.linalg.det(matrices)) + 0.02
    return matrices, offsets, weights / weights.sum()


def fractal_class(label, rng, n_points=500, n_steps=28):
    """Draw fractal ``label`` by the chaos game, many short walks side by side."""
    matrices, offsets, weights = iterated_functions(label)
    matrices = matrices * rng.uniform(0.92, 1.04, (len(matrices), 1, 1))
    points, trail = rng.uniform(-1, 1, (n_points, 2)), []
    for step in range(n_steps):
        choice = rng.choice(len(weights), n_points, p=weights)
        points = np.einsum("nij,nj->ni", matrices[choice], points) + offsets[choice]
        if step >= 8:
            trail.append(points)
    points = np.concatenate(trail)
    low, high = np.quantile(points, [0.01, 0.99], axis=0)
    points = (points - (low + high) / 2) / (np.max(high - low) / 2 + 1e-3)
    u, v = rotate(points[:, 0], points[:, 1], rng.uniform(-0.6, 0.6))
    scale = rng.uniform(0.6, 1.1)
    density, _, _ = np.histogram2d(scale * v, scale * u, bins=SIZE, range=[[-1, 1], [-1, 1]])
    density = np.clip(np.log1p(density) / np.log1p(density.max() * 0.5 + 1), 0, 1).astype(np.float32)
    if rng.random() < 0.5:
        density = ndimage.uniform_filter(density, 2)
    return blend(random_texture(rng), paint(density, rng, 3), np.clip(2 * density, 0, 1))
