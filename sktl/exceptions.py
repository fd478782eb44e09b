"""Errors and warnings of sktl.

Every error is also a standard type, so that code which knows nothing of sktl catches it too::

    SktlError
    ├── InputError (ValueError)             X holds rows that cannot be used
    ├── BackboneError (ValueError)          a backbone cannot be built as asked
    │   ├── UnknownBackboneError            its name is not known
    │   └── WeightsNotFoundError            its weights are not on disk and cannot be fetched
    ├── StrategyError (ValueError)          a strategy is unknown, or does not fit backbone or data
    ├── ExportError (ValueError)            an estimator cannot be written in another form, or the file is none of ours
    ├── ShardError (ValueError)             files of embeddings cannot be read, or not be added to
    └── MissingExtraError (ImportError)     an optional package is not installed

    SktlWarning (UserWarning)
    ├── InputWarning                        a row was used in part (the first frame of an animation)
    ├── CacheWarning                        the embedding store cannot be used; work goes on without it
    └── PrecisionWarning                    a network is run in float32, because the precision asked for changes it
"""

from collections.abc import Sequence
from typing import NamedTuple


class BadRow(NamedTuple):
    """One row of X that cannot be used.

    Parameters
    ----------
    index : int
        Its position in X.
    label : str
        What names it in messages.
    reason : str
        Why it cannot be used.
    """

    index: int
    label: str
    reason: str


class SktlError(Exception):
    """Base class of all errors that sktl raises on purpose."""


class InputError(SktlError, ValueError):
    """Rows of X cannot be used.

    Parameters
    ----------
    message : str
        What is wrong, and what to do about it.
    rows : sequence of BadRow, default=()
        The offending rows as ``(index, label, reason)``; empty where X as a whole is wrong.
    """

    def __init__(self, message: str, rows: Sequence[BadRow] = ()):
        super().__init__(message)
        self.rows = [BadRow(*row) for row in rows]

    def __reduce__(self):
        return type(self), (str(self), self.rows)


class BackboneError(SktlError, ValueError):
    """A backbone cannot be built as asked."""


class UnknownBackboneError(BackboneError):
    """No backbone has this name."""


class WeightsNotFoundError(BackboneError):
    """Pretrained weights are neither on disk nor within reach."""


class StrategyError(SktlError, ValueError):
    """A strategy is unknown, or does not fit the backbone or the data."""


class ExportError(SktlError, ValueError):
    """An estimator cannot be written as an ONNX graph, or a file is no graph that sktl wrote."""


class ShardError(SktlError, ValueError):
    """A folder of embeddings holds a file that cannot be read, or rows of another kind than those to be added."""


class MissingExtraError(SktlError, ImportError):
    """An optional package that the call needs is not installed."""


class SktlWarning(UserWarning):
    """Base class of all warnings that sktl gives."""


class InputWarning(SktlWarning):
    """A row of X was used, but not all that it holds."""


class CacheWarning(SktlWarning):
    """The embedding store cannot be read or written; the work goes on without it."""


class PrecisionWarning(SktlWarning):
    """A network is run in float32 by torch, because what was asked for changes its embeddings too much."""
