"""onnxruntime, opened with the cores that this process may use."""

from typing import Any

import torch

from sktl._deps import import_extra
from sktl.exceptions import ExportError
from sktl.export._quiet import cause

CALLER = "Running an ONNX graph"


def open_session(content: bytes) -> Any:
    """Make an inference session of a serialised graph.

    Parameters
    ----------
    content : bytes
        Of an ONNX file.

    Returns
    -------
    session : onnxruntime.InferenceSession
        On the CPU.

    Raises
    ------
    ExportError
        If onnxruntime cannot read it.
    """
    onnxruntime = import_extra("onnxruntime", extra="onnx", caller=CALLER)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; its warnings are about its own optimisations
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common type of their own
        raise ExportError(f"onnxruntime cannot read this graph: {cause(error)}") from error
