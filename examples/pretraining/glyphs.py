"""Characters in many fonts, bent and warped."""

import glob
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from .canvas import CHARACTERS, SIZE, blend
from .patterns import random_texture

FONT_FOLDERS = ("/usr/share/fonts/truetype/dejavu",)
"""Where the DejaVu fonts lie (Debian's package fonts-dejavu); other fonts give other pictures."""


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
