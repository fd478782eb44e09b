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

    python -m examples.pretraining.generate --output /tmp/pretrain/images --n-images 200000
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

from .canvas import N_CLASSES
from .glyphs import glyph_class
from .patterns import field_class, fractal_class, texture_class
from .solids import contour_class, creature_class

SHARE = {"glyphs": 0.22, "creatures": 0.28, "contours": 0.16, "fields": 0.12, "textures": 0.14, "fractals": 0.08}
"""How often each family is drawn."""

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
    parser.add_argument("--n-images", type=int, default=200_000, help="how many pictures (default: %(default)s)")
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
