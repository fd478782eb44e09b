"""Encoded images and Pillow images to uint8 RGB pixels.

What becomes of a picture, whatever its encoding:

* Formats read: JPEG (also its multi-picture form, MPO), PNG, WebP, BMP, GIF, TIFF and PPM/PGM/PBM/PFM. No other.
* EXIF orientation is applied; EXIF that cannot be read counts as orientation 1. ICC profiles are ignored, as timm
  ignores them.
* Alpha and transparent colours are composited on white.
* 16-bit grey is divided by 257; 16-bit colour is reduced by Pillow. 32-bit integers must lie within 0..255 and floats
  within [0, 1].
* CMYK, YCbCr, Lab, palettes and grey become RGB as Pillow converts them.
* Of an animation or a file of several pages, the first frame is used.
* The size is judged by ``max_pixels`` before a pixel is decoded, and no setting of Pillow's is changed.
"""

import io

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from sktl._forks import ForkSafeLock
from sktl.inputs._arrays import to_uint8
from sktl.inputs._errors import RowError

MAX_PIXELS = 2**28 // 3  # Pillow's own default: above it Pillow warns, above twice as much it refuses

# Imported by name, so that Pillow never goes looking for its forty other plugins in the middle of a thread.
_PLUGINS = (JpegImagePlugin.JpegImageFile, PngImagePlugin.PngImageFile, WebPImagePlugin.WebPImageFile,
            BmpImagePlugin.BmpImageFile, GifImagePlugin.GifImageFile, TiffImagePlugin.TiffImageFile,
            PpmImagePlugin.PpmImageFile)  # fmt: skip
_FORMATS = tuple(plugin.format for plugin in _PLUGINS)
_READABLE = ", ".join(_FORMATS)

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_16_BIT_AS_I = ("PPM", "PNG")  # Pillow opens 16-bit grey of these as 32-bit integers, PNG up to version 10

# The user's own image may stand in several rows, and loading it or reading its EXIF changes it. It cannot carry a lock,
# nor be a key, so it takes one of these by its address.
_image_locks = [ForkSafeLock() for _ in range(61)]


def decode(data: bytes, max_pixels: int) -> tuple[np.ndarray, bool]:
    """Decode an encoded image.

    Parameters
    ----------
    data : bytes
        Content of an image file.
    max_pixels : int
        Larger images are refused before they are decoded.

    Returns
    -------
    pixels : ndarray of uint8 of shape (H, W, 3)
        RGB, upright, on white.
    is_first_of_many : bool
        Whether the file holds further frames or pages.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image, max_pixels)
            return _to_rgb(image), _is_animated(image)
    except RowError:
        raise
    except Exception as error:
        # Damaged files bring more out of Pillow's plugins than it documents: OSError, SyntaxError, struct.error,
        # KeyError, OverflowError, AttributeError and others, and whatever of its warnings the caller made an error.
        raise RowError(_explain(error, data, max_pixels)) from error


def pillow_to_rgb(image: Image.Image, max_pixels: int) -> np.ndarray:
    """Bring the current frame of a Pillow image to RGB pixels.

    Parameters
    ----------
    image : PIL.Image.Image
        Loaded or not; it is loaded, and not changed otherwise.
    max_pixels : int
        Larger images are refused before they are loaded.

    Returns
    -------
    pixels : ndarray of uint8 of shape (H, W, 3)
        RGB, upright, on white.
    """
    try:
        with _image_locks[id(image) // 16 % len(_image_locks)]():
            _check_size(image, max_pixels)
            return _to_rgb(image)
    except RowError:
        raise
    except Exception as error:  # an image that was not loaded yet fails here as a file does
        raise RowError(f"a Pillow image that cannot be loaded: {_name(error)}") from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise RowError(f"an image of {width} x {height} pixels")
    if width * height > max_pixels:
        raise RowError(f"too large: {width} x {height} = {width * height:,} pixels, where max_pixels={max_pixels:,}")


def _to_rgb(image: Image.Image) -> np.ndarray:
    image.load()  # before EXIF is asked for: in PNG and TIFF it may stand behind the pixels
    orientation = _orientation(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _reduce_wide(image)
    if image.has_transparency_data:
        image = _on_white(image)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return np.asarray(image)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a camera's broken notes say nothing against its picture, whatever they break in Pillow
        return 1


def _reduce_wide(image: Image.Image) -> Image.Image:
    """Bring 16- and 32-bit grey to 8 bits by value; ``convert`` would clip it."""
    values = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _16_BIT_AS_I):
        values = values.astype(np.uint16)
    grey = Image.fromarray(to_uint8(values))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, np.uint8(0), np.uint8(255))))
    return grey


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    elif image.mode == "RGB" and max(image.info["transparency"]) > 255:
        image = _reduce_colour_key(image)
    image = image.convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image)
    return page


def _reduce_colour_key(image: Image.Image) -> Image.Image:
    """Follow Pillow, which keeps the upper byte of 16-bit colours, but not of the colour that is transparent."""
    image = image.copy()
    image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
    return image


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # the first frame is whole; what follows is not wanted, so its damage is no matter
        return False


def _explain(error: Exception, data: bytes, max_pixels: int) -> str:
    name = _guess_format(data)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _explain_bomb(error, max_pixels)
    if isinstance(error, UnidentifiedImageError) and name not in _FORMATS:
        what = "not an image file of a known format" if name is None else f"{name} is not read"
        return f"{what}; formats read are {_READABLE}"
    if isinstance(error, MemoryError):
        return f"not enough memory to decode this {name} file"
    if "truncated" in str(error).lower():
        return f"truncated {name} file: it ends after {len(data):,} bytes"
    detail = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else _name(error)
    return f"broken {name} file: {detail}"


def _explain_bomb(error: Exception, max_pixels: int) -> str:
    reason = f"too large: {error}"
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        reason += " That is Pillow's own limit, PIL.Image.MAX_IMAGE_PIXELS, which max_pixels does not lift."
    return reason


def _name(error: Exception) -> str:
    return str(error) or type(error).__name__


_SIGNATURES = (
    (0, b"\xff\xd8", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"jP", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL", "JPEG XL"),
    (0, b"8BPS", "PSD"),
    (0, b"DDS ", "DDS"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"\x0a\x05\x01", "PCX"),
    (0, b"\x01\xda", "SGI"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\x93NUMPY", "npy"),
)
_MARKUP = ((b"<!doctype html", "HTML"), (b"<html", "HTML"), (b"<svg", "SVG"), (b"<?xml", "XML or SVG"))


def _guess_format(data: bytes) -> str | None:
    for offset, signature, name in _SIGNATURES:
        if data.startswith(signature, offset):
            return name
    if data[:1] == b"P" and data[1:2] in b"123456FfyY":
        return "PPM"
    text = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((name for start, name in _MARKUP if text.startswith(start)), None)
