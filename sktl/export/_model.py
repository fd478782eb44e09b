"""Predicting with an exported file: images in whatever form, onnxruntime, and nothing of torch's networks."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from sklearn.utils.metaestimators import available_if

from sktl.exceptions import BadRow, ExportError
from sktl.export._names import FORMAT, INPUT, METADATA_PREFIX
from sktl.export._session import open_session
from sktl.inputs import MAX_PIXELS, ImagePreprocessor, RowError, open_rows, raise_bad_rows

_DECODING_THREADS = 4


def _gives(*outputs: str):
    """Make a check for ``available_if``: whether the graph has one of these outputs."""
    return lambda model: any(output in model.outputs for output in outputs)


class OnnxModel:
    """A model read from an ONNX file that :func:`sktl.export_onnx` wrote.

    Images are read, decoded and resized as the exported estimator does it; onnxruntime does the rest.

    Parameters
    ----------
    source : path-like or bytes
        The file, or its content.
    channels : {"first", "last"}, default=None
        Which axis of arrays holds the channels. None uses the estimator's own setting; if it had none, the axis is
        detected from the shape, and ambiguous shapes are refused.
    root : path-like, default=None
        Folder that relative paths in X refer to; paths that lead out of it are refused.
    max_pixels : int, default=89_478_485
        Larger images are refused before any pixel is decoded.
    batch_size : int, default=16
        Images per pass.

    Attributes
    ----------
    kind : {"classifier", "regressor", "transformer"}
        What was exported.
    classes_ : ndarray of shape (n_classes,)
        Only of classifiers.
    multilabel_ : bool
        Only of classifiers: whether predictions are columns of 0 and 1, one per class.
    data_config : dict
        How images become the input of the graph.
    backbone : str
        Name of the network.
    outputs : list of str
        What the graph gives; see :func:`sktl.export_onnx`.

    Raises
    ------
    ExportError
        If it is not an ONNX file, or was not written by :func:`sktl.export_onnx`.
    MissingExtraError
        If onnxruntime is not installed.

    See Also
    --------
    sktl.export_onnx : Writes the file.
    """

    def __init__(self, source, *, channels=None, root=None, max_pixels: int = MAX_PIXELS, batch_size: int = 16):
        content = source if isinstance(source, bytes) else Path(os.fspath(source)).read_bytes()
        self.root, self.max_pixels, self.batch_size = root, max_pixels, batch_size
        self._session = open_session(content)
        facts = _facts(self._session)
        self.channels = facts.get("channels") if channels is None else channels  # older files do not tell
        self.kind = facts["kind"]
        self.data_config = facts["preprocessing"]
        self.backbone = facts["backbone"]
        self._preprocess = ImagePreprocessor(self.data_config)
        self.outputs = [output.name for output in self._session.get_outputs()]
        if facts["classes"] is not None:
            self.classes_ = np.asarray(facts["classes"])
            self.multilabel_ = facts.get("multilabel", False)

    @available_if(_gives("label", "predictions"))
    def predict(self, X) -> np.ndarray:
        """Predict labels or numbers.

        Parameters
        ----------
        X : sequence of images
            Paths, bytes, Pillow images or arrays.

        Returns
        -------
        predictions : ndarray of shape (n,), (n, n_classes) or (n, n_targets)
            Labels of the type of ``classes_``, columns of 0 and 1, or numbers.

        Raises
        ------
        InputError
            If rows cannot be read; the message names all of them.
        """
        (predictions,) = self._run(X, "label" if self.kind == "classifier" else "predictions")
        return self._as_labels(predictions) if self.kind == "classifier" else predictions

    @available_if(_gives("probabilities"))
    def predict_proba(self, X) -> np.ndarray:
        """Compute class probabilities.

        Parameters
        ----------
        X : sequence of images
            Paths, bytes, Pillow images or arrays.

        Returns
        -------
        proba : ndarray of shape (n, n_classes), float32
            Columns in the order of ``classes_``.
        """
        (proba,) = self._run(X, "probabilities")
        return proba

    @available_if(_gives("probabilities"))
    def predict_with_proba(self, X) -> tuple[np.ndarray, np.ndarray]:
        """Predict labels and class probabilities in one run of the network.

        Parameters
        ----------
        X : sequence of images
            Paths, bytes, Pillow images or arrays.

        Returns
        -------
        labels : ndarray of shape (n,) or (n, n_classes)
            As :meth:`predict` gives them.
        proba : ndarray of shape (n, n_classes), float32
            As :meth:`predict_proba` gives them.
        """
        labels, proba = self._run(X, "label", "probabilities")
        return self._as_labels(labels), proba

    @available_if(_gives("embeddings", "transformed"))
    def transform(self, X) -> np.ndarray:
        """Compute embeddings.

        Parameters
        ----------
        X : sequence of images
            Paths, bytes, Pillow images or arrays.

        Returns
        -------
        embeddings : ndarray of shape (n, width), float32
            One row per image.
        """
        (embeddings,) = self._run(X, "transformed" if "transformed" in self.outputs else "embeddings")
        return embeddings

    def _run(self, X, *outputs: str) -> list[np.ndarray]:
        parts = [self._session.run(list(outputs), {INPUT: pixels}) for pixels in self._batches(X)]
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def _as_labels(self, labels: np.ndarray) -> np.ndarray:
        return np.asarray(labels).astype(self.classes_.dtype)

    def _batches(self, X):
        """Yield arrays of shape (n, height, width, 3); if rows cannot be read, look at all of them and name them."""
        rows, bad = open_rows(X, channels=self.channels, root=self.root, max_pixels=self.max_pixels), []

        def read(index: int) -> np.ndarray | None:
            try:
                return self._preprocess(rows[index].pixels())
            except RowError as error:
                bad.append(BadRow(index, rows.label(index), str(error)))

        with ThreadPoolExecutor(_DECODING_THREADS) as threads:
            for start in range(0, len(rows), self.batch_size):
                pixels = list(threads.map(read, range(start, min(len(rows), start + self.batch_size))))
                if not bad:
                    yield np.stack(pixels)
        if bad:
            raise_bad_rows(bad, len(rows))


def _facts(session) -> dict:
    metadata = session.get_modelmeta().custom_metadata_map
    facts = {
        key.removeprefix(METADATA_PREFIX): json.loads(value)
        for key, value in metadata.items()
        if key.startswith(METADATA_PREFIX)
    }
    if "preprocessing" not in facts:
        raise ExportError(
            "This ONNX file does not say how images become its input: sktl.export_onnx() wrote no such file."
        )
    if facts["format"] != FORMAT:
        raise ExportError(
            f"This ONNX file is of format {facts['format']}, and this version of sktl reads format {FORMAT}: install a "
            "newer one."
        )
    return facts
