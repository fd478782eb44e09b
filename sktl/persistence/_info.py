"""Say what is in a file without loading it."""

import os
from dataclasses import dataclass, field
from typing import Any

from sktl.persistence._container import FORMAT_VERSION, Container
from sktl.persistence._files import untrusted_in

_SHOWN_CLASSES = 12


@dataclass(frozen=True)
class ModelInfo:
    """What a file says about the model in it; print it for a summary.

    Parameters
    ----------
    path : str
        The file.
    size : int
        Its size in bytes.
    format_version : int
        Version of the file's format.
    created : str
        When it was written, in UTC.
    versions : dict of str to str
        Versions of Python and of the packages that wrote it.
    estimator : str
        Names of the estimators' classes.
    task : str or None
        "classifier", "regressor", "transformer", or None for anything else.
    classes : list or None
        The labels of a classifier.
    networks : list of dict
        Backbone, strategy, sizes and fingerprint of each network.
    training_data : dict or None
        Number of rows and SHA-256 of what it was fitted on, where known.
    metrics : dict of str to float
        Scores that were given to :func:`sktl.save`.
    members : dict of str to dict
        Size and SHA-256 of each part of the file.
    untrusted : list of str
        Names that :func:`sktl.load` only accepts if they are among its ``trusted``.
    """

    path: str
    size: int
    format_version: int
    created: str
    versions: dict[str, str]
    estimator: str
    task: str | None
    classes: list | None
    networks: list[dict[str, Any]]
    training_data: dict[str, Any] | None
    metrics: dict[str, float]
    members: dict[str, dict[str, Any]] = field(repr=False)
    untrusted: list[str]

    def __str__(self) -> str:
        lines = [("file", f"{self.path} ({_as_size(self.size)}, format version {self.format_version})")]
        lines.append(("estimator", self.estimator))
        lines += [("classes", _as_list(self.classes))] if self.classes else []
        for network in self.networks:
            lines += list(_network_lines(network))
        lines.append(("training data", _as_data(self.training_data)))
        lines += [(f"metric {name}", f"{value:.6g}") for name, value in self.metrics.items()]
        lines.append(("written", f"{self.created} by {', '.join(map(' '.join, self.versions.items()))}"))
        lines += [("to be trusted", ", ".join(self.untrusted))] if self.untrusted else []
        lines += [
            (name, f"{_as_size(entry['size'])}, SHA-256 {entry['sha256']}")
            for name, entry in self.members.items()
            if name.startswith("weights/")
        ]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:{width}}  {text}" for name, text in lines)


def inspect(path: str | os.PathLike) -> ModelInfo:
    """Say what is in a file that :func:`sktl.save` wrote, without loading it.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    info : ModelInfo
        Backbone, strategy, classes, sizes, hashes, versions, training data and metrics; to be printed.

    Raises
    ------
    DamagedFileError, UnsafeFileError, FormatVersionError
        If it is not a whole file that :func:`sktl.save` wrote, or one of a newer version.

    Notes
    -----
    The file describes itself. Its hashes show that it has not changed since it was written, not who wrote it.

    Examples
    --------
    >>> import os, tempfile
    >>> import sktl
    >>> path = os.path.join(tempfile.mkdtemp(), "embeddings.sktl")
    >>> sktl.save(sktl.PretrainedFeatureTransformer(image_size=32).fit(["any.png"]), path)
    >>> sktl.inspect(path).networks[0]["backbone"]
    'sktl/tiny'
    """
    with Container(path) as container:
        manifest = container.manifest
        summary = manifest.get("summary") or {}
        return ModelInfo(
            path=container.path,
            size=container.size,
            format_version=manifest.get("format_version", FORMAT_VERSION),
            created=manifest.get("created", ""),
            versions=manifest.get("versions") or {},
            estimator=summary.get("estimator", ""),
            task=summary.get("task"),
            classes=summary.get("classes"),
            networks=summary.get("networks") or [],
            training_data=summary.get("training_data"),
            metrics=manifest.get("metrics") or {},
            members=manifest["members"],
            untrusted=untrusted_in(container),
        )


def _network_lines(network: dict[str, Any]):
    size = "x".join(map(str, (network.get("input_size") or [])[1:]))
    rows = f"images of {size} pixels" if size else f"texts of up to {network.get('max_length')} tokens"
    yield "backbone", f"{network['backbone']}, {network['parameters']:,} parameters, {rows}"
    if network.get("weights_file"):
        yield "weights", f"not in the file; give sktl.load weights={network['weights_file']!r}"
    if network.get("strategy"):
        trained = f"{network['trained_parameters']:,} parameters trained in {network['fit_seconds']:.1f} s"
        yield "strategy", f"{network['strategy']}, {trained}"
    yield "fingerprint", network["fingerprint"]


def _as_list(classes: list) -> str:
    shown = ", ".join(map(repr, classes[:_SHOWN_CLASSES]))
    more = f", and {len(classes) - _SHOWN_CLASSES} more" if len(classes) > _SHOWN_CLASSES else ""
    return f"{len(classes)}: {shown}{more}"


def _as_data(data: dict[str, Any] | None) -> str:
    return "not recorded" if data is None else f"{data['n_rows']:,} rows, SHA-256 {data['sha256']}"


def _as_size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:,.1f} kB"
