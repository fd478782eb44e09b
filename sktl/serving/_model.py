"""The model as the server asks it: images of many requests through the network together, then request by request."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn import config_context
from sklearn.utils.validation import check_is_fitted

from sktl._deployment import Parts, check_takes_images, innermost, labels_and_proba, take_apart
from sktl.embedding import embed_with_stats
from sktl.embedding.engine import make_plan
from sktl.embedding.passes import Passes
from sktl.exceptions import InputError
from sktl.inputs import open_rows
from sktl.serving._pictures import encode


class Answer(NamedTuple):
    """What the model says of the images of a request.

    Attributes
    ----------
    predictions : list
        Labels or numbers.
    proba : ndarray of shape (n, n_classes) or None
        None if the model gives no probabilities.
    embeddings : ndarray of shape (n, width) or None
        None if the model cannot be taken apart.
    """

    predictions: list
    proba: np.ndarray | None
    embeddings: np.ndarray | None


class BadImages(Exception):  # noqa: N818 -- an answer to the client, not an error of ours
    """Images of a request that cannot be used.

    Parameters
    ----------
    reasons : dict of int to str
        By their place in the request.
    """

    def __init__(self, reasons: dict[int, str]):
        super().__init__(reasons)
        self.reasons = reasons


class ServedModel:
    """A fitted model, ready to be asked by several threads.

    A request gets what ``model.predict`` and ``model.predict_proba`` give for its images, to the last bit, whatever
    else the server is doing: the embedding of an image does not depend on its neighbours, and what comes after the
    embeddings is computed for each request by itself.

    Parameters
    ----------
    model : estimator
        Fitted, with ``predict``, for images.
    max_pixels : int
        Larger images are refused.

    Raises
    ------
    InputError
        If the model does not predict, or not from images.
    NotFittedError
        If it is not fitted.

    Attributes
    ----------
    pass_size : int
        Images that fill a pass through the network.
    n_lanes : int
        Passes that run side by side.
    n_threads : int
        Threads that keep all cores busy.
    """

    def __init__(self, model: Any, max_pixels: int):
        self.model = innermost(model)
        self.max_pixels = max_pixels
        self.parts = take_apart(self.model)
        if not hasattr(self.model, "predict"):
            raise InputError(
                f"A server needs a model that predicts, got an object of type {type(self.model).__name__!r}."
            )
        check_takes_images(self.model, "The server")
        if self.parts is None and hasattr(self.model, "__sklearn_tags__"):
            check_is_fitted(self.model)
        if hasattr(self.model, "classes_") and self._predicts_several_labels():
            raise InputError("The server answers with one label per image, and this model predicts several.")
        self._steps, self._last = _after_embeddings(self.parts) if self.parts else ([], None)
        self.has_proba = hasattr(self.model, "predict_proba")
        self.classes = _plain(np.asarray(self.model.classes_)) if hasattr(self.model, "classes_") else None
        plan = make_plan(self.parts.view, **self.parts.policy) if self.parts else None
        self._passes = Passes(self.parts.view, plan) if self.parts else None
        self.pass_size = plan.batch_size if plan else 1
        self.n_lanes, self.n_threads = (plan.lanes, plan.n_threads) if plan else (1, 2)

    @property
    def shares_passes(self) -> bool:
        """Whether images of several requests go through the network together."""
        return self.parts is not None

    def _predicts_several_labels(self) -> bool:
        """Tell by predicting, where that takes no image: not all of scikit-learn's classifiers say so themselves."""
        if self.parts is None:
            return getattr(self.model, "multilabel_", False) or isinstance(self.model.classes_, list)
        return np.ndim(self.parts.predictor.predict(np.zeros((1, self.parts.view.width), np.float32))) > 1

    def warm_up(self) -> None:
        """Predict a picture of noise, so that what is made once is made before the first request."""
        pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        if self.shares_passes:
            self.answer(self.run([self._passes.preprocess(pixels)]))
        else:
            self.answer_whole([encode(pixels, "PNG")])

    def limit_thread(self) -> None:
        """Give the calling thread, one of the server's own, its share of the cores."""
        if self._passes is not None:
            self._passes.limit_thread()

    def prepare(self, image: bytes) -> np.ndarray:
        """Decode an image, and bring it to the network's size.

        Parameters
        ----------
        image : bytes
            Content of a file.

        Returns
        -------
        pixels : ndarray of uint8 of shape (height, width, 3)
            For :meth:`run`.

        Raises
        ------
        RowError
            If it cannot be used.
        """
        (row,) = open_rows([image], max_pixels=self.max_pixels)
        return self._passes.preprocess(row.pixels())

    def run(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Compute embeddings in one pass through the network.

        Parameters
        ----------
        prepared : sequence of ndarray
            At most ``pass_size`` of :meth:`prepare`.

        Returns
        -------
        embeddings : ndarray of shape (n, width), float32
            NaN or infinity where the network gives that.
        """
        batch = np.zeros((self.pass_size, *prepared[0].shape), dtype=np.uint8)
        np.stack(prepared, out=batch[: len(prepared)])
        return self._passes(torch.from_numpy(batch), len(prepared))

    def answer(self, embeddings: np.ndarray) -> Answer:
        """Answer a request.

        Parameters
        ----------
        embeddings : ndarray of shape (n, width)
            Of its images; finite.
        """
        # Looking for NaN, which is not there, would take longer than a linear model does, for each request.
        with config_context(assume_finite=True):
            features = embeddings
            for step in self._steps:
                features = step.transform(features)
            proba = self._last.predict_proba(features) if self.has_proba else None
            return Answer(_plain(self._last.predict(features)), proba, embeddings)

    def answer_whole(self, images: list[bytes]) -> Answer | BadImages:
        """Answer a request by a model that cannot be taken apart.

        Parameters
        ----------
        images : list of bytes
            Contents of files.
        """
        try:
            labels, proba = labels_and_proba(self.model, images)
            return Answer(_plain(labels), proba, None)
        except InputError as error:
            if not error.rows:
                raise
            return BadImages({row.index: row.reason for row in error.rows})

    def embed(self, images: Sequence) -> tuple[np.ndarray, dict[int, str]]:
        """Compute embeddings.

        Parameters
        ----------
        images : sequence of bytes or path
            Encoded images; any number.

        Returns
        -------
        embeddings : ndarray of shape (n, width)
            NaN where an image cannot be used.
        reasons : dict of int to str
            Why not, by place.
        """
        rows = open_rows(list(images), max_pixels=self.max_pixels)
        embeddings, stats = embed_with_stats(rows, self.parts.view, on_error="nan", **self.parts.policy)
        return embeddings, {row.index: row.reason for row in stats.bad}


def _after_embeddings(parts: Parts) -> tuple[list, Any]:
    """Return the steps that transform embeddings, and what predicts from that."""
    if parts.has_head:
        return [], parts.predictor
    *steps, last = (step for _, step in parts.predictor.steps)
    return steps, last


def _plain(values: np.ndarray) -> list:
    """Return values as JSON has them."""
    plain = np.asarray(values).tolist()
    return [value if isinstance(value, str | int | float | bool | list) else str(value) for value in plain]
