"""Fitted estimators as ONNX graphs, and predicting with such files."""

from sktl.export._export import export_onnx, to_onnx
from sktl.export._model import OnnxModel

__all__ = ["OnnxModel", "export_onnx", "to_onnx"]
