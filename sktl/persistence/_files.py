"""Save a fitted estimator to a file without pickle, and load it again."""

import io
import json
import math
import os
import platform
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from sktl.backbones import WeightsShelf, weights_on
from sktl.exceptions import (
    DamagedFileError,
    MissingExtraError,
    PersistenceError,
    UnsafeFileError,
    UnsupportedObjectError,
    UntrustedTypeError,
    VersionWarning,
    WeightsNotFoundError,
)
from sktl.persistence._container import MAX_JSON, Container, members_of, parse_json, write_container, zip_of
from sktl.persistence._summary import summarize
from sktl.persistence._trust import Trusted, check_trust, matches, trusted_patterns, untrusted_names

# Whose versions are written down, and those of which another one is worth a warning.
_PACKAGES = ("sktl", "scikit-learn", "torch", "timm", "skorch", "numpy", "skops", "safetensors")
_TELLING = ("sktl", "scikit-learn", "torch", "timm")
_LOOKED_UP = ("FunctionNode", "TypeNode", "ObjectNode")  # as skops calls them
_MAX_UNPACKED = 2**28
_MAX_UNPACKED_RATIO = 100


def save(estimator: BaseEstimator, path: str | os.PathLike, *, metrics: Mapping[str, float] | None = None) -> None:
    """Write a fitted estimator to one file that holds no pickle.

    Parameters
    ----------
    estimator : estimator
        A fitted estimator of sktl, or one of scikit-learn's around it: a ``Pipeline``, a ``GridSearchCV``.
    path : path-like
        The file, such as ``model.sktl``. It is written under another name and renamed when it is complete: if the disk
        is full or the folder cannot be written to, an earlier file of that name is left as it is.
    metrics : dict of str to float, default=None
        Scores of the model, such as its accuracy on test data; :func:`sktl.inspect` and the model card show them.

    Raises
    ------
    UnsupportedObjectError
        If the estimator holds something that has no form without pickle, such as a function without a name, or too much
        that has to be written as JSON, such as a vocabulary of some 300,000 words.
    NotFittedError
        If it is not fitted.

    See Also
    --------
    load : Reads the file.
    inspect : Says what is in it.

    Notes
    -----
    The file is an uncompressed zip: settings and scikit-learn's parts as JSON and arrays, by skops; weights of networks
    in safetensors' format; and a manifest in JSON with the versions of what wrote it and the SHA-256 of each member.

    Examples
    --------
    >>> import os, tempfile
    >>> import sktl
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> model = sktl.FineTuneClassifier(strategy="feature_extraction", image_shape=(8, 8), image_size=32)
    >>> path = os.path.join(tempfile.mkdtemp(), "digits.sktl")
    >>> sktl.save(model.fit(X[:100], y[:100]), path, metrics={"accuracy": 0.9})
    >>> bool((sktl.load(path).predict(X[:5]) == model.predict(X[:5])).all())
    True
    """
    if not isinstance(estimator, BaseEstimator):
        raise UnsupportedObjectError(
            f"sktl.save takes a scikit-learn estimator, got {type(estimator).__name__} instead."
        )
    check_is_fitted(estimator)
    with weights_on(WeightsShelf()) as shelf:
        try:
            tree = members_of(_skops().dumps(estimator))
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UnsupportedObjectError(
                f"This {type(estimator).__name__} holds something that has no form without pickle: {error} "
                "Leave it out, or use pickle or joblib for people who trust you."
            ) from error
    schema = json.loads(tree["schema.json"])
    _refuse_hidden(schema)
    tree["schema.json"] = json.dumps(schema, separators=(",", ":")).encode()  # half the size
    if len(tree["schema.json"]) > MAX_JSON:
        raise UnsupportedObjectError(
            f"What this {type(estimator).__name__} holds takes {len(tree['schema.json']):,} bytes of JSON, and at most "
            f"{MAX_JSON:,} can be read. The usual reason is a large dict, such as the vocabulary of a text vectorizer: "
            "make it smaller, or use pickle or joblib for people who trust you."
        )
    members = {f"estimator/{name}": data for name, data in tree.items()}
    members |= {f"weights/{key}.safetensors": data for key, data in shelf.blobs.items()}
    manifest = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions_here(),
        "summary": summarize(estimator),
        "metrics": _plain_metrics(metrics),
    }
    write_container(path, members, manifest)


def load(path: str | os.PathLike, trusted: Trusted = None, *, weights: str | os.PathLike | None = None) -> Any:
    """Read an estimator from a file that :func:`sktl.save` wrote, without running anything that is in the file.

    Parameters
    ----------
    path : path-like
        The file.
    trusted : list of str or type, default=None
        Classes and functions that may be imported besides scikit-learn's and sktl's own: types, or their full names,
        possibly with wildcards (``"torch.nn.*"``). Needed for networks of your own, and for decision trees, whose
        arrays scikit-learn does not check.
    weights : path-like, default=None
        The file with the public weights, where the estimator was made with ``persist="reference"`` and a file.

    Returns
    -------
    estimator : estimator
        Fitted, as it was saved.

    Raises
    ------
    DamagedFileError
        If the file is truncated, was changed, or was not written by sktl.
    UnsafeFileError
        If it contains something that :func:`sktl.save` never writes.
    UntrustedTypeError
        If it names classes or functions that are not trusted.
    WeightsNotFoundError, WeightsMismatchError
        If it refers to public weights that cannot be found, or that differ from those it was made from.
    FormatVersionError
        If it was written by a newer version of sktl, in a format that this version cannot read.

    Warns
    -----
    VersionWarning
        If it was written with other versions of sktl, scikit-learn, torch or timm.

    See Also
    --------
    save : Writes the file.
    inspect : Says what is in it, without loading it.

    Examples
    --------
    See :func:`sktl.save`.
    """
    patterns = trusted_patterns(trusted)
    with Container(path) as container, _errors_of(container):
        tree = _read_tree(container)
        allowed = check_trust(_skops().get_untrusted_types(data=tree), patterns)
        _warn_of_versions(container)
        shelf = WeightsShelf(
            lambda key: container.read(f"weights/{key}.safetensors"), weights, lambda name: matches(name, patterns)
        )
        with weights_on(shelf):
            return _skops().loads(tree, trusted=allowed)


def untrusted_in(container: Container) -> list[str]:
    """Return the names in a file that need the caller's trust, without looking any of them up."""
    with _errors_of(container):
        return untrusted_names(_skops().get_untrusted_types(data=_read_tree(container)))


def _skops() -> ModuleType:
    """Import skops late: to know what it may trust, it imports all of scikit-learn."""
    from skops import io

    return io


def _refuse_hidden(node: Any, place: str = "") -> None:
    """Refuse functions and classes that a reader could not look up in their module by their names."""
    if isinstance(node, list):
        for each in node:
            _refuse_hidden(each, place)
    if not isinstance(node, dict):
        return
    if node.get("__loader__") in _LOOKED_UP and not hasattr(sys.modules.get(node["__module__"]), node["__class__"]):
        raise UnsupportedObjectError(
            f"{place!r} holds {node['__class__']!r}, which is defined inside a function or class of the module "
            f"{node['__module__']!r}, or has no name: nobody who reads the file could find it. Define it on the top "
            "level of a module."
        )
    for name, each in node.items():
        _refuse_hidden(each, place if name in ("content", "func") or name.startswith("__") else name)


def versions_here() -> dict[str, str]:
    """Return the versions of Python and of the packages that a model stands on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _read_tree(container: Container) -> bytes:
    """Return the estimator as skops wrote it, after a look into what it would unpack."""
    members = {name: container.read(f"estimator/{name}") for name in container.names("estimator")}
    parse_json(members.get("schema.json", b""), "estimator/schema.json")
    for name, data in members.items():
        if name.endswith(".npz"):
            _check_unpacked_size(name, data)
    return zip_of(members)


def _check_unpacked_size(name: str, data: bytes) -> None:
    """Refuse a sparse matrix, which scipy compresses, that would unpack to more than a file of that size may."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(info.file_size for info in archive.infolist())
    if size > max(_MAX_UNPACKED_RATIO * len(data), _MAX_UNPACKED):
        raise UnsafeFileError(f"its member {name!r} would unpack to {size:,} bytes.")


@contextmanager
def _errors_of(container: Container) -> Iterator[None]:
    """Turn whatever reading a file may raise into one error that names the file."""
    start = f"The file {container.path!r} cannot be loaded: "
    try:
        yield
    except (Warning, MissingExtraError):  # of other versions, where warnings are errors; of a text model's extra
        raise
    except UntrustedTypeError as error:
        raise UntrustedTypeError(f"{start}{error}", error.names) from error.__cause__
    except PersistenceError as error:
        message = str(error)
        raise type(error)(message if message.startswith(start) else f"{start}{message}") from error.__cause__
    except WeightsNotFoundError as error:
        raise WeightsNotFoundError(f"{start}{error}") from error
    except Exception as error:  # what is in a file that somebody made by hand may fail in any way
        raise DamagedFileError(
            f"{start}what is in it is no estimator that these versions know ({type(error).__name__}: {error}). It was "
            f"written by {_as_text(container.manifest.get('versions'))}; here are {_as_text(versions_here())}."
        ) from error


def _warn_of_versions(container: Container) -> None:
    written, here = container.manifest.get("versions"), versions_here()
    if not isinstance(written, dict):
        raise DamagedFileError("its manifest does not say which versions wrote it.")
    other = [name for name in _TELLING if written.get(name) != here.get(name)]
    if other:
        theirs, ours = ({name: versions.get(name) for name in other} for versions in (written, here))
        warnings.warn(
            f"The file {container.path!r} was written by {_as_text(theirs)}; here are {_as_text(ours)}. It may predict "
            "slightly differently, or not at all.",
            VersionWarning,
            stacklevel=3,
        )


def _as_text(versions: Any) -> str:
    if not isinstance(versions, dict):
        return "unknown versions"
    return ", ".join(f"{name} {str(number)[:40]}" for name, number in versions.items())


def _plain_metrics(metrics: Mapping[str, float] | None) -> dict[str, float]:
    plain = {str(name): float(value) for name, value in (metrics or {}).items()}
    wrong = [name for name, value in plain.items() if not math.isfinite(value)]
    if wrong:
        raise ValueError(f"The 'metrics' parameter must hold finite numbers, got {wrong[0]!r}: {plain[wrong[0]]}.")
    return plain
