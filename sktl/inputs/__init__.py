"""From what the user calls X to rows of pixels: containers, files, decoding, content hashes, preprocessing."""

from sktl.inputs._containers import holds_images
from sktl.inputs._decode import MAX_PIXELS
from sktl.inputs._errors import RowError, raise_bad_rows
from sktl.inputs._preprocess import ImagePreprocessor
from sktl.inputs._rows import Row, Rows, open_rows
from sktl.inputs._strips import StripRows

__all__ = [
    "MAX_PIXELS",
    "ImagePreprocessor",
    "Row",
    "RowError",
    "Rows",
    "StripRows",
    "holds_images",
    "open_rows",
    "raise_bad_rows",
]
