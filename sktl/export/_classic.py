"""What stands behind the embeddings as ONNX: scikit-learn's models by way of skl2onnx."""

import copy
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from sktl._deployment import Parts
from sktl._deps import import_extra
from sktl.exceptions import ExportError
from sktl.export._names import ML_OPSET, OPSET
from sktl.export._quiet import quiet

_PREFIX = "classic_"


def append_classic(network: Any, parts: Parts, caller: str) -> Any:
    """Put the remaining steps of a pipeline behind a network that gives embeddings.

    Parameters
    ----------
    network : onnx.ModelProto
        With one output, ``embeddings``.
    parts : Parts
        Of a fitted pipeline.
    caller : str
        Opens the message if the extra is missing.

    Returns
    -------
    model : onnx.ModelProto
        One graph of both.

    Raises
    ------
    ExportError
        If skl2onnx cannot convert a step.
    """
    compose = import_extra("onnx.compose", extra="onnx", caller=caller)
    classic = _convert(parts.rest, parts.view.width, caller)
    classic.ir_version = network.ir_version
    outputs = [value.name for value in classic.graph.output]
    merged = compose.merge_models(
        network,
        compose.add_prefix(classic, _PREFIX),
        io_map=[("embeddings", f"{_PREFIX}embeddings")],
    )
    for name, old in zip(_output_names(parts.rest, parts.kind), outputs, strict=True):
        _rename(merged.graph, _PREFIX + old, name)
    if parts.kind == "regressor" and _gives_flat_numbers(parts):
        _flatten(merged.graph, import_extra("onnx.helper", extra="onnx", caller=caller))
    return merged


def _convert(steps: Pipeline, width: int, caller: str) -> Any:
    skl2onnx = import_extra("skl2onnx", extra="onnx", caller=caller)
    types = import_extra("skl2onnx.common.data_types", extra="onnx", caller=caller)
    last = steps.steps[-1][1]
    by_position = Pipeline([(name, _columns_by_position(step)) for name, step in steps.steps])

    def convert(options: dict[str, Any]) -> Any:
        return skl2onnx.to_onnx(
            by_position,
            initial_types=[("embeddings", types.FloatTensorType([None, width]))],
            options={id(last): options},
            target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
        )

    try:
        with quiet():
            try:
                return convert({"zipmap": False})  # probabilities as an array, not as dicts
            except (NameError, RuntimeError):  # its converter knows no such option
                return convert({})
    except Exception as error:  # converters exist for most, and fail in their own ways for the rest
        names = ", ".join(f"{name!r} ({type(step).__name__})" for name, step in steps.steps)
        raise ExportError(
            f"The steps {names} cannot be written as an ONNX graph: that takes models of scikit-learn's that skl2onnx "
            f"converts. It says: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        ) from error


def _columns_by_position(step: Any) -> Any:
    """Return a step that names no columns: in the graph embeddings have none, whatever frame they were passed on in."""
    if not isinstance(step, ColumnTransformer):
        return step
    places = step._transformer_to_input_indices
    numbered = copy.copy(step)
    numbered.transformers_ = [(name, each, list(places[name])) for name, each, _ in step.transformers_]
    return numbered


def _output_names(steps: Pipeline, kind: str) -> list[str]:
    if kind == "classifier":
        return ["label", "probabilities" if hasattr(steps, "predict_proba") else "scores"]
    return ["predictions"] if kind == "regressor" else ["transformed"]


def _gives_flat_numbers(parts: Parts) -> bool:
    return np.ndim(parts.predictor.predict(np.zeros((1, parts.view.width), dtype=np.float32))) == 1


def _flatten(graph: Any, helper: Any) -> None:
    """Take from predictions of shape (n, 1), which skl2onnx gives for all regressors, the second axis."""
    flat, column, shape = "predictions", f"{_PREFIX}column", f"{_PREFIX}flat"
    _rename(graph, flat, column)
    (given,) = graph.output
    kind = given.type.tensor_type
    graph.initializer.append(helper.make_tensor(shape, helper.np_dtype_to_tensor_dtype(np.dtype(np.int64)), [1], [-1]))
    graph.node.append(helper.make_node("Reshape", [column, shape], [flat]))
    graph.output.append(helper.make_tensor_value_info(flat, kind.elem_type, [kind.shape.dim[0].dim_param or None]))
    graph.output.remove(given)


def _rename(graph: Any, old: str, new: str) -> None:
    """Rename a value wherever it is given, taken or declared."""
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = new
    for value in graph.output:
        if value.name == old:
            value.name = new
