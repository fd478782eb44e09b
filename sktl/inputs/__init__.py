"""From what the user calls X to rows of pixels or texts: containers, files, decoding, content hashes, preprocessing."""

from sktl.inputs._augment import Augmenter
from sktl.inputs._containers import holds_images, is_missing, item_of, refuse_nested, refuse_single, refuse_unordered
from sktl.inputs._decode import MAX_PIXELS
from sktl.inputs._errors import RowError, raise_bad_rows
from sktl.inputs._preprocess import ImagePreprocessor
from sktl.inputs._rows import Row, Rows, open_rows
from sktl.inputs._strips import StripRows
from sktl.inputs._texts import TextRows, find_texts, open_texts, read_text, refuse_texts

__all__ = [
    "MAX_PIXELS",
    "Augmenter",
    "ImagePreprocessor",
    "Row",
    "RowError",
    "Rows",
    "StripRows",
    "TextRows",
    "find_texts",
    "holds_images",
    "is_missing",
    "item_of",
    "open_rows",
    "open_texts",
    "raise_bad_rows",
    "read_text",
    "refuse_nested",
    "refuse_single",
    "refuse_texts",
    "refuse_unordered",
]
