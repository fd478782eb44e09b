"""``export_onnx``: a fitted estimator as one ONNX file."""

import errno
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sktl._deployment import Parts, take_apart
from sktl._deps import import_extra
from sktl._writing import replacing
from sktl.exceptions import ExportError
from sktl.export._classic import append_classic
from sktl.export._names import FORMAT, METADATA_PREFIX
from sktl.export._network import ClassifierHead, Embeddings, MultilabelHead, RegressorHead, network_graph
from sktl.inputs import ImagePreprocessor

CALLER = "export_onnx()"
_PACKAGES = ("onnx", "onnxruntime", "onnxscript", "skl2onnx")


def export_onnx(estimator, path) -> Path:
    """Write a fitted estimator as an ONNX graph, which onnxruntime and others run without Python.

    The graph starts after decoding and resizing. Its one input ``images`` is a batch of any size of 8-bit RGB pixels,
    a uint8 tensor of shape (n, height, width, 3), upright, and resized and cropped to the input size of the backbone
    as the file's metadata says. The graph does the rest: it scales the pixels to [0, 1], normalises each channel,
    and runs the network and what comes after it, in float32.

    Parameters
    ----------
    estimator : estimator
        A fitted :class:`PretrainedFeatureTransformer`, :class:`FineTuneClassifier` or :class:`FineTuneRegressor` with
        any strategy, a ``Pipeline`` that begins with one and goes on with scikit-learn's own models (``"passthrough"``
        steps are ignored, and pipelines inside it are taken for their steps), or a search around one of these, of
        which the best estimator is exported.
    path : path-like
        The file to write, usually called ``*.onnx``. It appears when it is complete; an earlier file of that name
        stays as it is until then.

    Returns
    -------
    path : Path
        The file.

    Raises
    ------
    ExportError
        If the estimator is of another kind or was fitted on rows of plain numbers, a step has no counterpart in ONNX,
        or the network cannot be traced.
    NotFittedError
        If the estimator is not fitted.
    MissingExtraError
        If the packages of the extra ``sktl[onnx]`` are not installed.
    FileNotFoundError or NotADirectoryError
        If the folder does not exist; this is checked first.

    See Also
    --------
    sktl.export.OnnxModel : Predicts with the file.

    Notes
    -----
    Outputs are, for classifiers, ``label`` of shape (n,), of the type of ``classes_``, and ``probabilities`` of shape
    (n, n_classes), float32 (``scores`` where the model gives no probabilities), and for labels in columns ``label`` of
    shape (n, n_classes), int64; for regressors ``predictions``, of the shape that they give themselves; for
    transformers ``embeddings`` (``transformed`` behind further steps). torch's exporter writes the network, skl2onnx
    the classic steps; the network's part is run by onnxruntime and compared with torch before anything is written.

    The metadata, strings of JSON, holds ``sktl.classes``, ``sktl.preprocessing`` (the backbone's data config: input
    size, interpolation, crop, mean and standard deviation), ``sktl.channels`` (which axis of arrays that is, for
    :class:`sktl.export.OnnxModel`), ``sktl.kind``, ``sktl.backbone`` and ``sktl.versions``.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktl import FineTuneClassifier, export_onnx
    >>> digits = load_digits()
    >>> images = (digits.images * 255 / 16).astype("uint8")[..., None]
    >>> model = FineTuneClassifier(strategy="feature_extraction", image_size=32).fit(images[:100], digits.target[:100])
    >>> export_onnx(model, "digits.onnx").name  # doctest: +SKIP
    'digits.onnx'
    """
    path = Path(os.fspath(path))
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():  # not after seconds of tracing
        reason = errno.ENOTDIR if folder.exists() else errno.ENOENT
        raise OSError(reason, os.strerror(reason), os.fspath(path))
    content = to_onnx(estimator)
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
    return path


def to_onnx(estimator) -> bytes:
    """Return what :func:`export_onnx` writes.

    Parameters
    ----------
    estimator : estimator
        See :func:`export_onnx`.

    Returns
    -------
    content : bytes
        The content of an ONNX file.
    """
    for package in _PACKAGES:
        import_extra(package, extra="onnx", caller=CALLER)
    parts = _check(estimator)
    model = network_graph(parts, _head(parts))
    if parts.rest is not None and not parts.has_head:
        model = append_classic(model, parts, CALLER)
    elif parts.kind == "classifier" and not parts.is_multilabel:
        _append_labels(model, classes_of(parts))
    _describe(model, parts)
    return _serialise(model)


def _check(estimator) -> Parts:
    parts = take_apart(estimator)
    if parts is None:
        raise ExportError(
            "export_onnx() takes a fitted PretrainedFeatureTransformer, FineTuneClassifier or FineTuneRegressor, or "
            f"a Pipeline that begins with one, got {type(estimator).__name__} instead."
        )
    if hasattr(parts.reader, "head_"):
        raise ExportError(
            f"head={type(parts.reader.head_).__name__}() is no part of a network. Put a PretrainedFeatureTransformer "
            "and that model into a Pipeline, and export it."
        )
    if parts.reader.input_kind_ == "texts":
        raise ExportError("Networks of texts cannot be written as ONNX graphs: only networks of images can.")
    if parts.reader.input_kind_ == "numbers" and parts.reader.image_shape is None:
        raise ExportError(
            f"This {type(parts.reader).__name__} was fitted on rows of plain numbers, and the graph starts at images. "
            "Give images in fit, or image_shape= if the rows are flattened images."
        )
    return parts


def _head(parts: Parts) -> nn.Module:
    """Return what torch computes behind the embeddings."""
    reader = parts.reader
    if not parts.has_head:
        return Embeddings()
    if parts.kind == "classifier":
        return (MultilabelHead if parts.is_multilabel else ClassifierHead)(reader.net_.module_.head)
    return RegressorHead(reader.net_.module_.head, reader.target_mean_, reader.target_scale_, reader._is_one_column)


def classes_of(parts: Parts) -> np.ndarray | None:
    """Return the classes of a classifier, as an array that ONNX has a type for."""
    if parts.kind != "classifier":
        return None
    classes = parts.rest.classes_
    if not isinstance(classes, np.ndarray):
        raise ExportError("Classifiers of several outputs cannot be written as an ONNX graph.")
    if classes.dtype == object and all(isinstance(each, str) for each in classes):
        return classes.astype(str)
    if classes.dtype.kind not in "iubUf":
        raise ExportError(f"Classes must be strings, numbers or booleans, got an array of {classes.dtype} instead.")
    return classes


def _append_labels(model: Any, classes: np.ndarray) -> None:
    """Turn the index of the class into its label, within the graph."""
    helper = import_extra("onnx.helper", extra="onnx", caller=CALLER)
    element = import_extra("onnx", extra="onnx", caller=CALLER).TensorProto
    kind, values = {
        "U": (element.STRING, [str(each).encode() for each in classes]),
        "b": (element.BOOL, classes.tolist()),
        "f": (element.DOUBLE, classes.tolist()),
    }.get(classes.dtype.kind, (element.INT64, classes.tolist()))
    graph = model.graph
    index = next(value for value in graph.output if value.name == "class_index")
    graph.initializer.append(helper.make_tensor("classes", kind, [len(classes)], values))
    graph.node.append(helper.make_node("Gather", ["classes", "class_index"], ["label"]))
    batch = index.type.tensor_type.shape.dim[0].dim_param
    graph.output.insert(0, helper.make_tensor_value_info("label", kind, [batch]))
    graph.output.remove(index)


def _describe(model: Any, parts: Parts) -> None:
    """Store in the graph what a reader of the file has to know."""
    helper = import_extra("onnx.helper", extra="onnx", caller=CALLER)
    classes = classes_of(parts)
    config = ImagePreprocessor(parts.view.data_config).config
    _, height, width = config["input_size"]
    model.producer_name, model.producer_version = "sktl", version("sktl")
    model.graph.doc_string = (
        f"images: uint8 RGB pixels of shape (n, {height}, {width}, 3), upright, resized and cropped as the metadata "
        f"{METADATA_PREFIX}preprocessing says; not normalised."
    )
    facts = {
        "format": FORMAT,
        "kind": parts.kind,
        "classes": None if classes is None else classes.tolist(),
        "multilabel": parts.is_multilabel,
        "preprocessing": config,
        "channels": parts.reader.channels,
        "backbone": parts.reader.backbone_.name,
        "versions": {name: version(name) for name in ("sktl", "torch", "timm", "scikit-learn")},
    }
    helper.set_model_props(
        model, {METADATA_PREFIX + key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}
    )


def _serialise(model: Any) -> bytes:
    try:
        return model.SerializeToString()
    except Exception as error:  # protobuf's own limit is 2 GiB; its error differs between versions
        raise ExportError(f"The graph does not fit into one ONNX file of at most 2 GiB: {error}") from error
