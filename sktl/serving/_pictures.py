"""Pixels to image files."""

import io

import numpy as np
from PIL import Image


def encode(pixels: np.ndarray, kind: str, side: int | None = None) -> bytes:
    """Encode a picture.

    Parameters
    ----------
    pixels : ndarray of uint8 of shape (height, width, 3)
        RGB.
    kind : {"JPEG", "PNG"}
        Format of the file.
    side : int, default=None
        Shrink the picture to at most so many pixels a side.

    Returns
    -------
    content : bytes
        Of the file.
    """
    image = Image.fromarray(pixels)
    if side is not None:
        image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
