"""What timm's evaluation transform does to a picture, done to the part that is kept."""

import math
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image

from sktl.exceptions import BackboneError

_VERSION = 1  # part of every cache key: raise it whenever decoding or resizing changes a pixel

_CROP_MODES = ("center", "squash", "border")
_FILTERS = {
    # name -> Pillow's filter and its reach in pixels of the smaller grid
    "nearest": (Image.Resampling.NEAREST, 1.0),
    "box": (Image.Resampling.BOX, 0.5),
    "bilinear": (Image.Resampling.BILINEAR, 1.0),
    "hamming": (Image.Resampling.HAMMING, 1.0),
    "bicubic": (Image.Resampling.BICUBIC, 2.0),
    "lanczos": (Image.Resampling.LANCZOS, 3.0),
}

# Pillow resizes one axis after the other and clips in between, so the order shows at hard edges. Up to version
# 12 columns come first; 13 takes rows first if that leaves less to do.
_PILLOW_CHOOSES_ORDER = int(PIL.__version__.partition(".")[0]) >= 13


class _Axis(NamedTuple):
    """How one side of the picture maps to one side of the output."""

    part: slice  # of the source that the kept part depends on
    box: tuple[float, float]  # the kept part, in pixels of ``part``
    n_filled: int  # pixels of the output that it fills
    offset: int  # where in the output it starts; before and behind it is the fill colour


class ImagePreprocessor:
    """Resize and crop pictures as a backbone expects them.

    Equal to ``timm.data.create_transform(**data_config, is_training=False)`` before its normalisation, to one level of
    255, seldom two: Pillow takes the edges of a crop in single precision. (With "nearest" and "box", which jump from
    pixel to pixel, a result may hold the neighbour of timm's pixel.) Only the part of the picture that is kept is
    resized, so a picture of 1 x 5000 pixels costs no more than a square one.

    Parameters
    ----------
    data_config : dict
        What ``timm.data.resolve_data_config`` returns. ``input_size`` is needed; ``interpolation`` ("bicubic"),
        ``crop_pct`` (0.875), ``crop_mode`` ("center"), ``mean`` and ``std`` (ImageNet's) may be left out.

    Attributes
    ----------
    config : dict
        All that the result depends on, JSON-able; what a cache key hashes.

    Examples
    --------
    >>> import numpy as np
    >>> from sktl.inputs import ImagePreprocessor
    >>> preprocess = ImagePreprocessor({"input_size": (3, 64, 64)})
    >>> preprocess(np.zeros((480, 640, 3), dtype=np.uint8)).shape
    (64, 64, 3)
    """

    def __init__(self, data_config: dict):
        self.config = _complete(data_config)
        self._size = tuple(self.config["input_size"][1:])
        self._scaled_size = tuple(math.floor(side / self.config["crop_pct"]) for side in self._size)
        self._filter, self._reach = _FILTERS[self.config["interpolation"]]
        is_border = self.config["crop_mode"] == "border"
        self._fill = tuple(round(255 * value) for value in self.config["mean"]) if is_border else (0, 0, 0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Resize and crop one picture.

        Parameters
        ----------
        pixels : ndarray of uint8 of shape (H, W, 3)
            The picture.

        Returns
        -------
        pixels : ndarray of uint8 of shape (h, w, 3)
            C-contiguous; the very array that came in where nothing is to be done.
        """
        resized = self._resized_size(*pixels.shape[:2])
        if resized == self._size == pixels.shape[:2]:
            return np.ascontiguousarray(pixels)
        rows, columns = (self._plan(*sides) for sides in zip(pixels.shape, resized, self._size, strict=False))
        part = self._resize(pixels, rows, columns, _is_vertical_first(pixels.shape, resized))
        if (rows.n_filled, columns.n_filled) == self._size:
            return part
        page = np.full((*self._size, 3), self._fill, dtype=np.uint8)
        page[rows.offset : rows.offset + rows.n_filled, columns.offset : columns.offset + columns.n_filled] = part
        return page

    def _resize(self, pixels: np.ndarray, rows: _Axis, columns: _Axis, vertical_first: bool) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(pixels[rows.part, columns.part]))
        for is_vertical in (vertical_first, not vertical_first):
            width, height = image.size
            if is_vertical:
                image = image.resize((width, rows.n_filled), self._filter, (0, rows.box[0], width, rows.box[1]))
            else:
                image = image.resize(
                    (columns.n_filled, height), self._filter, (columns.box[0], 0, columns.box[1], height)
                )
        return np.array(image)

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the whole picture after timm's resize; it is never built in full."""
        mode, (to_height, to_width) = self.config["crop_mode"], self._scaled_size
        if mode == "squash":
            return to_height, to_width
        if mode == "center" and to_height == to_width:  # torchvision's Resize: the long side is cut off, not rounded
            short = min(height, width)
            return int(to_height * height / short), int(to_height * width / short)
        ratios = height / to_height, width / to_width
        ratio = max(ratios) if mode == "border" else min(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _plan(self, source: int, resized: int, target: int) -> _Axis:
        n_filled = min(resized, target)
        offset = (target - n_filled) // 2
        skipped = round((resized - target) / 2) if resized > target else 0
        scale = source / resized
        start, stop = skipped * scale, min(source, (skipped + n_filled) * scale)
        reach = self._reach * max(1.0, scale) + 1
        first, last = max(0, math.floor(start - reach)), min(source, math.ceil(stop + reach))
        return _Axis(slice(first, last), (start - first, min(stop - first, last - first)), n_filled, offset)


def _is_vertical_first(source: tuple[int, ...], resized: tuple[int, int]) -> bool:
    """Whether Pillow would resize rows before columns if it resized the whole picture, as it does for timm."""
    n_rows_less, n_columns_less = source[0] - resized[0], source[1] - resized[1]
    return _PILLOW_CHOOSES_ORDER and n_rows_less > max(0, 2 * n_columns_less)


def _complete(data_config: dict) -> dict:
    given = {name: value for name, value in data_config.items() if value is not None}
    config = {
        "version": _VERSION,
        "input_size": _numbers("input_size", given["input_size"], int),
        "interpolation": given.get("interpolation") or "bicubic",
        "crop_pct": float(given.get("crop_pct", 0.875)),
        "crop_mode": given.get("crop_mode") or "center",
        "mean": _numbers("mean", given.get("mean", (0.485, 0.456, 0.406)), float),
        "std": _numbers("std", given.get("std", (0.229, 0.224, 0.225)), float),
    }
    if config["interpolation"] == "random":  # timm's training draws between filters; its evaluation takes this one
        config["interpolation"] = "bilinear"
    _check(config)
    return config


def _numbers(name: str, values: Any, kind: type) -> list:
    if not np.iterable(values) or isinstance(values, str) or not all(isinstance(value, Real) for value in values):
        raise BackboneError(f"{name!r} of a data config must hold three numbers, got {values!r} instead.")
    return [kind(value) for value in values]


def _check(config: dict) -> None:
    size = config["input_size"]
    if len(size) != 3 or size[0] != 3 or min(size) < 1:
        raise BackboneError(f"'input_size' of a data config must be (3, height, width), got {tuple(size)} instead.")
    for name, allowed in (("crop_mode", _CROP_MODES), ("interpolation", tuple(_FILTERS))):
        if config[name] not in allowed:
            raise BackboneError(f"'{name}' of a data config must be one of {allowed}, got {config[name]!r} instead.")
    if config["crop_pct"] <= 0:
        raise BackboneError(f"'crop_pct' of a data config must be above 0, got {config['crop_pct']} instead.")
    if len(config["mean"]) != 3 or len(config["std"]) != 3:
        raise BackboneError("'mean' and 'std' of a data config must hold three values each.")
    if min(config["std"]) <= 0:
        raise BackboneError(f"'std' of a data config must hold values above 0, got {config['std']} instead.")
