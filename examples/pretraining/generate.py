"""Draw a pretraining set with formulas: no photograph, no download, only code, a seed and fonts.

Six families of pictures, each cut into classes by the numbers in its formula:

=============  =======================================================================================
glyphs         characters in many fonts, bent and warped, on plain or textured ground
creatures      trees of soft blobs, lit from a side, in a new pose, view and light each time
contours       closed curves, sums of sine waves (as in VisualAtom), filled, ringed or shaded
fields         small random networks of coordinates (CPPN), warped: marbles, waves, cells
textures       noise with a power-law spectrum, gratings, Voronoi cells, dead leaves
fractals       iterated function systems (as in FractalDB)
=============  =======================================================================================

A class fixes the formula; an image fixes the rest (pose, colours, light, ground, noise). One picture is a function of
``(seed, index)`` alone, so shards can be drawn in any order, by any number of processes, and are the same.

Usage::

    python -m examples.pretraining.generate --output /tmp/pretrain/images --n-images 100000
"""

import argparse
import glob
import math
import os
import string
import time
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

SIZE = 72
"""Side of a picture in pixels."""

CHARACTERS = string.digits + string.ascii_letters + "!?&@#$%+=*/<>{}[]§€" + "αβγδεθλμπσφψωΓΔΘΛΞΣΦΨΩ" + "БГДЖИЛЦШЭЯ"
FONT_FOLDERS = ("/usr/share/fonts/truetype/dejavu",)
N_CLASSES = {
    "glyphs": len(CHARACTERS),
    "creatures": 240,
    "contours": 120,
    "fields": 120,
    "textures": 120,
    "fractals": 80,
}
SHARE = {"glyphs": 0.22, "creatures": 0.28, "contours": 0.16, "fields": 0.12, "textures": 0.14, "fractals": 0.08}


# ---------------------------------------------------------------------------------------------------------------------
# Small tools


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


# ---------------------------------------------------------------------------------------------------------------------
# Textures, also the ground and the skin of everything else


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


# ---------------------------------------------------------------------------------------------------------------------
# Fields: compositional pattern-producing networks


ACTIVATIONS = (np.sin, np.cos, np.tanh, np.abs, lambda z: np.exp(-(z**2)), lambda z: np.abs(np.sin(z)))


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


# ---------------------------------------------------------------------------------------------------------------------
# Solids: a signed distance, drawn with light


def shade(distance, height, rng):
    """Mask, brightness and gloss of a solid from its distance field (negative inside) and height field."""
    mask = np.clip(0.5 - distance * SIZE / 2.5, 0, 1)
    gy, gx = np.gradient(height, 2 / SIZE)
    normal = np.stack([-gx, -gy, np.ones_like(gx)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    light = np.array([*rng.uniform(-1, 1, 2), rng.uniform(0.4, 1.2)], dtype=np.float32)
    light /= np.linalg.norm(light)
    lambert = np.clip(normal @ light, 0, 1)
    ambient = rng.uniform(0.15, 0.6)
    gloss = rng.uniform(0, 0.7) * lambert ** rng.uniform(8, 40)
    return mask, ambient + (1 - ambient) * lambert, gloss


def place(ground, skin, distance, height, rng):
    """Lay a lit solid with its shadow and, sometimes, an outline on a ground."""
    mask, brightness, gloss = shade(distance, height, rng)
    if rng.random() < 0.5:
        shift = rng.integers(-6, 7, 2)
        shadow = ndimage.uniform_filter(np.roll(mask, shift, (0, 1)), 5) * rng.uniform(0.2, 0.7)
        ground = ground * (1 - shadow[..., None])
    picture = blend(ground, np.clip(skin * brightness[..., None] + gloss[..., None], 0, 1), mask)
    if rng.random() < 0.25:
        line = np.clip(1 - np.abs(distance) * SIZE / rng.uniform(2, 5), 0, 1)
        picture = blend(picture, np.broadcast_to(random_colour(rng), picture.shape), line)
    return picture


def creature_plan(label):
    """Body plan of a creature: its parts, each hung on an earlier one, and the colours it tends to have."""
    fixed = formula_rng("creatures", label)
    n_parts = int(fixed.integers(3, 9))
    plan = {
        "parent": [int(fixed.integers(0, max(1, min(i, 3)))) for i in range(n_parts)],
        "angle": fixed.uniform(0, 2 * np.pi, n_parts),
        "reach": fixed.uniform(0.7, 1.3, n_parts),
        "length": fixed.uniform(0.16, 0.42, n_parts) * np.linspace(1.3, 0.7, n_parts),
        "width": fixed.uniform(0.06, 0.26, n_parts),
        "boxy": fixed.random(n_parts) < 0.3,
        "mirrored": fixed.random() < 0.4,
        "softness": float(fixed.uniform(0.02, 0.12)),
        "colours": fixed.uniform(0.05, 0.95, (n_parts, 3)),
        "skin": int(fixed.integers(N_CLASSES["textures"])),
        "skinned": fixed.random() < 0.4,
    }
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in plan.items()}


def part_distance(x, y, length, width, boxy):
    """Signed distance to an upright capsule or box around the origin."""
    if boxy:
        dx, dy = np.abs(x) - length, np.abs(y) - width
        return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)
    return np.hypot(x - np.clip(x, -length + width, length - width) if length > width else x, y) - width


def creature_distance(plan, x, y, rng):
    """Distance field of a posed creature and the number of the nearest part at each pixel."""
    centres, angles, distances = [], [], []
    for i, parent in enumerate(plan["parent"]):
        angle = plan["angle"][i] + rng.normal(0, 0.22)
        centre = (0.0, 0.0)
        if i:
            direction = angles[parent] + angle
            step = plan["reach"][i] * (0.6 * plan["length"][parent] + 0.6 * plan["length"][i])
            centre = (centres[parent][0] + step * math.cos(direction), centres[parent][1] + step * math.sin(direction))
        centres.append(centre)
        angles.append(angle)
        u, v = rotate(x - centre[0], y - centre[1], -angle)
        length, width = plan["length"][i] * rng.uniform(0.85, 1.15), plan["width"][i] * rng.uniform(0.85, 1.15)
        distances.append(part_distance(u, v, length, width, plan["boxy"][i]))
    distances = np.stack(distances)
    soft = plan["softness"]
    lowest = distances.min(axis=0)
    union = lowest - soft * np.log(np.exp(-(distances - lowest) / soft).sum(axis=0))
    return union, distances.argmin(axis=0)


def creature_skin(plan, nearest, rng):
    """Colour of every pixel of a creature: its own palette, or a new one, with or without a pattern."""
    n_parts = len(plan["parent"])
    colours = (
        np.array(plan["colours"]) if rng.random() < 0.6 else np.stack([random_colour(rng) for _ in range(n_parts)])
    )
    colours = np.clip(colours + rng.normal(0, 0.07, (1, 3)), 0, 1)
    skin = colours[nearest].astype(np.float32)
    if plan["skinned"]:
        skin = 0.45 * skin + 0.55 * texture_class(plan["skin"], rng)
    return skin


def creature_class(label, rng):
    """Draw creature ``label`` in a new pose, view, light and place."""
    plan = creature_plan(label)
    x, y = random_view(rng, zoom=(0.6, 1.3), shift=0.25, turn=0.5)
    if rng.random() < 0.5:
        x = -x
    if plan["mirrored"]:
        x = np.abs(x) - 0.1
    distance, nearest = creature_distance(plan, x, y, rng)
    height = np.sqrt(np.clip(-distance, 0, None) * 0.5 + 1e-4)
    ground = random_texture(rng)
    if rng.random() < 0.3:
        ground = add_clutter(ground, rng)
    return place(ground, creature_skin(plan, nearest, rng), distance, height, rng)


def add_clutter(ground, rng):
    """Put one or two contours of a random class on the ground."""
    for _ in range(rng.integers(1, 3)):
        distance, height = contour_distance(int(rng.integers(N_CLASSES["contours"])), rng, zoom=(2.0, 4.0), shift=2.0)
        ground = place(ground, random_texture(rng), distance, height, rng)
    return ground


def contour_distance(label, rng, zoom=(0.75, 1.7), shift=0.3):
    """Distance and height field of the closed curve ``label``: a circle whose radius is a sum of sine waves."""
    fixed = formula_rng("contours", label)
    x, y = random_view(rng, zoom=zoom, shift=shift)
    theta, radius = np.arctan2(y, x), np.hypot(x, y)
    edge = np.full_like(theta, 0.7)
    for _ in range(int(fixed.integers(1, 4))):
        order, amplitude = int(fixed.integers(2, 13)), fixed.uniform(0.05, 0.3)
        wave = np.sin(order * theta + fixed.uniform(0, 6.28) + rng.normal(0, 0.1))
        wave = np.abs(wave) - 0.5 if fixed.random() < 0.3 else wave
        edge += amplitude * rng.uniform(0.8, 1.2) * 3 / (order + 2) * wave
    distance = 0.9 * (radius - edge) / zoom[0]
    rings = int(fixed.integers(0, 4))
    height = np.sqrt(np.clip(edge - radius, 0, None) * 0.4 + 1e-4)
    if rings:
        distance = np.maximum(distance, 0.12 - np.abs(np.sin(rings * np.pi * radius / np.maximum(edge, 0.1))) * 0.5)
    return distance, height


def contour_class(label, rng):
    """Draw contour ``label``, on a ground that may hold others."""
    ground = random_texture(rng)
    if rng.random() < 0.3:
        ground = add_clutter(ground, rng)
    distance, height = contour_distance(label, rng)
    return place(ground, random_texture(rng), distance, height, rng)


# ---------------------------------------------------------------------------------------------------------------------
# Fractals


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


# ---------------------------------------------------------------------------------------------------------------------
# Glyphs


@cache
def fonts(size):
    """The font files found on this machine, loaded at one size; Pillow's built-in font if there is none."""
    files = sorted(path for folder in FONT_FOLDERS for path in glob.glob(f"{folder}/DejaVu*.ttf"))
    return [ImageFont.truetype(path, size) for path in files] or [ImageFont.load_default(size)]


def bend(field, rng, strength):
    """Warp a picture by a smooth random displacement."""
    x, y = np.meshgrid(np.arange(SIZE, dtype=np.float32), np.arange(SIZE, dtype=np.float32))
    for axis in (x, y):
        coarse = rng.normal(0, strength, (4, 4)).astype(np.float32)
        axis += ndimage.zoom(coarse, SIZE / 4, order=1)
    return ndimage.map_coordinates(field, [y, x], order=1, mode="constant")


def glyph_mask(character, rng):
    """Coverage of one bent, slanted character, thick or thin, somewhere near the middle."""
    size = int(rng.choice([32, 44, 56, 66]))
    available = fonts(size)
    image = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(image)
    where = tuple((SIZE / 2 + rng.normal(0, 0.06 * SIZE, 2)).tolist())
    stroke = int(rng.choice([0, 0, 0, 1, 2]))
    draw.text(
        where, character, fill=255, font=available[rng.integers(len(available))], anchor="mm", stroke_width=stroke
    )
    a, b = 1 / rng.uniform(0.7, 1.25), rng.normal(0, 0.18)
    c, d = rng.normal(0, 0.12), 1 / rng.uniform(0.8, 1.2)
    half = SIZE / 2
    matrix = (a, b, half - a * half - b * half, c, d, half - c * half - d * half)
    image = image.transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return bend(np.asarray(image, dtype=np.float32) / 255, rng, rng.uniform(0, 3.5))


def glyph_class(label, rng):
    """Draw character ``label``: half of the time plain ink on plain paper, else texture on texture."""
    mask = glyph_mask(CHARACTERS[label], rng)
    if rng.random() < 0.5:
        paper, ink = rng.uniform(0, 0.35), rng.uniform(0.65, 1)
        grey = paper + (ink - paper) * mask
        grey = 1 - grey if rng.random() < 0.5 else grey
        return np.repeat(grey[..., None], 3, axis=-1)
    ground, ink = random_texture(rng), random_texture(rng)
    contrast = np.sign(0.5 - ground.mean()) * rng.uniform(0.2, 0.5)
    return blend(ground, np.clip(ink + contrast, 0, 1), mask)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and shards


DRAW = {
    "glyphs": glyph_class,
    "creatures": creature_class,
    "contours": contour_class,
    "fields": field_class,
    "textures": texture_class,
    "fractals": fractal_class,
}


def class_names():
    """Names of all classes, in the order of their numbers.

    Returns
    -------
    list of str
        ``"family/number"``.
    """
    return [f"{family}/{label}" for family, count in N_CLASSES.items() for label in range(count)]


def draw_picture(seed, index):
    """Draw picture number ``index``.

    Parameters
    ----------
    seed : int
        Seed of the whole set.
    index : int
        Number of the picture.

    Returns
    -------
    pixels : ndarray of shape (SIZE, SIZE, 3), uint8
    label : int
        Number of its class, see `class_names`.
    """
    rng = np.random.default_rng([seed, index])
    family = rng.choice(list(SHARE), p=list(SHARE.values()))
    label = int(rng.integers(N_CLASSES[family]))
    picture = DRAW[family](label, rng)
    families = list(N_CLASSES)
    offset = sum(N_CLASSES[name] for name in families[: families.index(family)])
    return (255 * np.clip(picture, 0, 1)).astype(np.uint8), offset + label


def write_shard(folder, seed, shard, shard_size):
    """Draw one shard and write it in one piece; a shard that exists is left alone."""
    path = Path(folder) / f"shard-{shard:04d}.npz"
    if path.exists():
        return path
    pictures = [draw_picture(seed, shard * shard_size + i) for i in range(shard_size)]
    part = path.with_name(path.stem + ".part")
    with open(part, "wb") as file:
        labels = np.array([label for _, label in pictures], dtype=np.int16)
        np.savez(file, pixels=np.stack([pixels for pixels, _ in pictures]), labels=labels)
    os.replace(part, path)
    return path


def build_parser():
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="folder of the shards")
    parser.add_argument("--n-images", type=int, default=100_000, help="how many pictures (default: %(default)s)")
    parser.add_argument("--shard-size", type=int, default=2_000, help="pictures per shard (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the set (default: %(default)s)")
    parser.add_argument("--contact-sheet", metavar="FILE", help="only write one PNG with 12 x 12 pictures, to look at")
    return parser


def write_contact_sheet(path, seed, side=12):
    """Write the first pictures as one PNG."""
    rows = [np.concatenate([draw_picture(seed, side * r + c)[0] for c in range(side)], axis=1) for r in range(side)]
    Image.fromarray(np.concatenate(rows)).save(path)


def main():
    """Draw what the command line asks for."""
    arguments = build_parser().parse_args()
    if arguments.contact_sheet:
        write_contact_sheet(arguments.contact_sheet, arguments.seed)
        return
    os.makedirs(arguments.output, exist_ok=True)
    start = time.perf_counter()
    for shard in range(-(-arguments.n_images // arguments.shard_size)):
        path = write_shard(arguments.output, arguments.seed, shard, arguments.shard_size)
        print(f"{path} after {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
