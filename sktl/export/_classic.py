"""What stands behind the embeddings as ONNX: scikit-learn's models by way of skl2onnx."""

import copy
from typing import Any

from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from sktl._deps import import_extra
from sktl.exceptions import ExportError
from sktl.export._names import ML_OPSET, OPSET
from sktl.export._quiet import quiet

_PREFIX = "classic_"


def append_classic(network: Any, steps: Pipeline, width: int, kind: str, caller: str) -> Any:
    """Put the remaining steps of a pipeline behind a network that gives embeddings.

    Parameters
    ----------
    network : onnx.ModelProto
        With one output, ``embeddings``.
    steps : Pipeline
        Fitted; takes embeddings.
    width : int
        Number of values per embedding.
    kind : {"classifier", "regressor", "transformer"}
        What the last step is.
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
    classic = _convert(steps, width, caller)
    classic.ir_version = network.ir_version
    outputs = [value.name for value in classic.graph.output]
    merged = compose.merge_models(
        network,
        compose.add_prefix(classic, _PREFIX),
        io_map=[("embeddings", f"{_PREFIX}embeddings")],
    )
    for name, old in zip(_output_names(steps, kind), outputs, strict=True):
        _rename(merged.graph, _PREFIX + old, name)
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
