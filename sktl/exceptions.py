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
    ├── PersistenceError (ValueError)       a model cannot be written to a file, or read from one
    │   ├── UnsupportedObjectError          it holds something that a file without pickle cannot
    │   ├── DamagedFileError                the file is not whole, not as it was written, or not one of sktl
    │   ├── UnsafeFileError                 it is made as no file of sktl is, to do harm
    │   ├── UntrustedTypeError              it names classes or functions that the caller did not trust
    │   ├── FormatVersionError              it was written by a newer sktl, in a form not known here
    │   └── WeightsMismatchError            the public weights that it refers to are not those found here
    ├── CheckpointError (ValueError)        a checkpoint is of another fit, or damaged
    └── MissingExtraError (ImportError)     an optional package is not installed

    SktlWarning (UserWarning)
    ├── InputWarning                        a row was used in part (the first frame of an animation)
    ├── CacheWarning                        the embedding store cannot be used; work goes on without it
    ├── VersionWarning                      a model was written with other versions than those that read it
    ├── DeviceWarning                       several fits train on one GPU at the same time
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


class PersistenceError(SktlError, ValueError):
    """A model cannot be written to a file, or read from one."""


class UnsupportedObjectError(PersistenceError):
    """An object cannot be written to a file without pickle."""


class DamagedFileError(PersistenceError):
    """A file is truncated, was changed after it was written, or is none of sktl's."""


class UnsafeFileError(PersistenceError):
    """A file is made as no file of sktl is: with members that do not belong there, or that would fill the memory."""


class UntrustedTypeError(PersistenceError):
    """A file names classes or functions that are neither scikit-learn's nor sktl's, and that the caller did not trust.

    Parameters
    ----------
    message : str
        What is wrong, and what to do about it.
    names : sequence of str, default=()
        The names in question.
    """

    def __init__(self, message: str, names: Sequence[str] = ()):
        super().__init__(message)
        self.names = list(names)

    def __reduce__(self):
        return type(self), (str(self), self.names)


class FormatVersionError(PersistenceError):
    """A file was written by a newer version of sktl, in a form that this one does not know."""


class WeightsMismatchError(PersistenceError):
    """The public weights that a model refers to are not the ones that are found under their name."""


class CheckpointError(SktlError, ValueError):
    """A checkpoint of training belongs to another fit, or cannot be read, or its folder cannot be written to."""


class MissingExtraError(SktlError, ImportError):
    """An optional package that the call needs is not installed."""


class SktlWarning(UserWarning):
    """Base class of all warnings that sktl gives."""


class InputWarning(SktlWarning):
    """A row of X was used, but not all that it holds."""


class CacheWarning(SktlWarning):
    """The embedding store cannot be read or written; the work goes on without it."""


class VersionWarning(SktlWarning):
    """A model was written with other versions of the packages it stands on; it may predict slightly differently."""


class DeviceWarning(SktlWarning):
    """Several fits train on one GPU at the same time, and share its memory."""


class PrecisionWarning(SktlWarning):
    """A network is run in float32 by torch, because what was asked for changes its embeddings too much."""
