"""The network of a model as an ONNX graph: 8-bit pixels in, embeddings or the head's outputs out."""

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from sktl._deployment import Parts
from sktl.embedding.runtime import PixelsToEmbedding
from sktl.exceptions import ExportError
from sktl.export._names import INPUT, OPSET
from sktl.export._quiet import cause, quiet
from sktl.export._session import open_session

_BATCH_TRACED, _BATCHES_CHECKED = 2, (1, 3)
_TOLERANCE = 1e-3  # of the self-check: wide enough for sums in another order, far too narrow for a wrong graph


class ClassifierHead(nn.Module):
    """The head of a classifier: which class, and how probable each is."""

    outputs = ("class_index", "probabilities")

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.head(embeddings)
        return logits.argmax(dim=1), torch.softmax(logits, dim=1)


class MultilabelHead(nn.Module):
    """The head of a classifier of labels in columns: which of them, and how probable each is."""

    outputs = ("label", "probabilities")

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.head(embeddings)
        return (logits > 0).long(), torch.sigmoid(logits)


class RegressorHead(nn.Module):
    """The head of a regressor, back on the scale of its targets.

    Parameters
    ----------
    head : nn.Module
        Gives standardised targets.
    mean, scale : ndarray of shape (n_targets,)
        Of the targets.
    is_one_column : bool
        Whether predictions have shape (n,) instead of (n, 1).
    """

    outputs = ("predictions",)

    def __init__(self, head: nn.Module, mean: np.ndarray, scale: np.ndarray, is_one_column: bool):
        super().__init__()
        self.head = head
        self.is_one_column = is_one_column
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor]:
        predictions = self.head(embeddings) * self.scale + self.mean
        return (predictions[:, 0] if self.is_one_column else predictions,)


class Embeddings(nn.Module):
    """No head at all."""

    outputs = ("embeddings",)

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor]:
        return (embeddings,)


class PixelsToOutputs(nn.Module):
    """Everything after decoding and resizing: normalisation, network, head.

    Parameters
    ----------
    parts : Parts
        Of a fitted model; nothing of it is changed.
    head : nn.Module
        Maps embeddings to a tuple of outputs, named by its ``outputs``.
    """

    def __init__(self, parts: Parts, head: nn.Module):
        super().__init__()
        config = parts.view.data_config
        self.embed = PixelsToEmbedding(copy.deepcopy(parts.view.module), config["mean"], config["std"])
        self.head = copy.deepcopy(head)
        self.eval().requires_grad_(False).cpu().float()

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.head(self.embed(pixels))


def network_graph(parts: Parts, head: nn.Module) -> Any:
    """Trace a network with its head into an ONNX model of a dynamic batch size, and compare it with torch.

    Parameters
    ----------
    parts : Parts
        Of a fitted model.
    head : nn.Module
        See :class:`PixelsToOutputs`.

    Returns
    -------
    model : onnx.ModelProto
        Maps ``images``, uint8 of shape (n, height, width, 3), to the outputs of the head.

    Raises
    ------
    ExportError
        If torch cannot trace the network, or onnxruntime computes something else from the graph.
    """
    network = PixelsToOutputs(parts, head)
    _, height, width = parts.view.data_config["input_size"]
    examples = [_pictures(n_images, height, width) for n_images in _BATCHES_CHECKED]
    with torch.inference_mode():
        expected = [network(pixels)[-1].numpy() for pixels in examples]  # first: tracing may leave a module unusable
        _compare_head(parts, network, examples[-1], expected[-1])
    try:
        with quiet():
            program = torch.onnx.export(
                network,
                (_pictures(_BATCH_TRACED, height, width),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim.AUTO},),
                input_names=[INPUT],
                output_names=list(head.outputs),
                opset_version=OPSET,
                verbose=False,
            )
        model = program.model_proto
    except Exception as error:  # the tracer may fail on any network in any way
        raise ExportError(
            f"The backbone {parts.reader.backbone_.name!r} cannot be written as an ONNX graph: torch.onnx.export fails "
            f"with {cause(error)}"
        ) from error
    _compare(model, examples, expected)
    return model


def _compare_head(parts: Parts, network: nn.Module, pixels: torch.Tensor, found: np.ndarray) -> None:
    """Make sure that the module to be traced says what the estimator says of its embeddings."""
    if not parts.has_head:
        return
    predictor, embeddings = parts.predictor, network.embed(pixels).numpy()
    expected = predictor.predict_proba(embeddings) if parts.kind == "classifier" else predictor.predict(embeddings)
    distance = _distance(found, np.asarray(expected))
    if not distance <= _TOLERANCE:
        raise ExportError(f"The head of this {type(parts.reader).__name__} cannot be written as an ONNX graph.")


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return np.inf
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def _pictures(n_images: int, height: int, width: int) -> torch.Tensor:
    """Return pictures of noise, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n_images, height, width, 3), dtype=torch.uint8, generator=generator)


def _compare(model: Any, examples: list[torch.Tensor], expected: list[np.ndarray]) -> None:
    """Run the graph on batches of other sizes than the one it was traced with."""
    session = open_session(model.SerializeToString())
    for pixels, values in zip(examples, expected, strict=True):
        try:
            found = session.run(None, {INPUT: pixels.numpy()})[-1]
        except Exception as error:  # onnxruntime's errors have no common type of their own
            raise ExportError(f"The graph cannot be run on {len(pixels)} images: {cause(error)}") from error
        distance = _distance(found, values)
        if not distance <= _TOLERANCE:
            raise ExportError(
                f"onnxruntime and torch disagree on the graph of this network by {distance:.2g}; it is not written."
            )
