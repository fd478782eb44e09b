"""The model as the server asks it: images of many requests through the network together, then request by request."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sktl._deployment import Parts, innermost, take_apart
from sktl.embedding import embed
from sktl.embedding.engine import make_plan
from sktl.exceptions import InputError
from sktl.inputs import Row, RowError, open_rows
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
    max_images : int
        Images that keep all cores busy.
    """

    def __init__(self, model: Any, max_pixels: int):
        self.model = innermost(model)
        self.max_pixels = max_pixels
        self.parts = take_apart(self.model)
        if not hasattr(self.model, "predict"):
            raise InputError(
                f"A server needs a model that predicts, got an object of type {type(self.model).__name__!r}."
            )
        kind = getattr(self.parts.reader, "input_kind_", "images") if self.parts else "images"
        if kind != "images":
            raise InputError(f"The server takes images, and this model was fitted on {kind}.")
        if self.parts is not None and self.parts.is_multilabel:
            raise InputError("The server answers with one label per image, and this model predicts several.")
        if self.parts is None and hasattr(self.model, "__sklearn_tags__"):
            check_is_fitted(self.model)
        self._steps, self._last = _after_embeddings(self.parts) if self.parts else (None, None)
        self.has_proba = hasattr(self.model, "predict_proba")
        self.classes = _plain(np.asarray(self.model.classes_)) if hasattr(self.model, "classes_") else None
        plan = make_plan(self.parts.view, **self.parts.policy) if self.parts else None
        self.pass_size = plan.batch_size if plan else 1
        self.max_images = plan.batch_size * plan.lanes if plan else 1

    @property
    def shares_passes(self) -> bool:
        """Whether images of several requests go through the network together."""
        return self.parts is not None

    def warm_up(self) -> None:
        """Predict a picture of noise, so that what is made once is made before the first request."""
        pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        self.answer_all([[encode(pixels, "PNG")]])

    def answer_all(self, requests: Sequence[list[bytes]]) -> list[Answer | BadImages]:
        """Answer several requests.

        Parameters
        ----------
        requests : sequence of list of bytes
            The encoded images of each.

        Returns
        -------
        answers : list
            One for each request: what the model says, or which of its images cannot be used.
        """
        if not self.shares_passes:
            return [self._answer_whole(images) for images in requests]
        embeddings, reasons = self.embed([image for images in requests for image in images])
        answers, start = [], 0
        for images in requests:
            places = range(start, start + len(images))
            bad = {place - start: reasons[place] for place in places if place in reasons}
            answers.append(BadImages(bad) if bad else self._answer(embeddings[places.start : places.stop]))
            start = places.stop
        return answers

    def embed(self, images: Sequence) -> tuple[np.ndarray, dict[int, str]]:
        """Compute embeddings.

        Parameters
        ----------
        images : sequence of bytes or path
            Encoded images.

        Returns
        -------
        embeddings : ndarray of shape (n, width)
            NaN where an image cannot be used.
        reasons : dict of int to str
            Why not, by place.
        """
        rows = _RecordedRows(images, self.max_pixels)
        embeddings = embed(rows, self.parts.view, on_error="nan", **self.parts.policy)
        bad = np.flatnonzero(np.isnan(embeddings).any(axis=1)).tolist()
        return embeddings, {place: rows.reason(place) for place in bad}

    def _answer(self, embeddings: np.ndarray) -> Answer:
        features = embeddings if self._steps is None else self._steps.transform(embeddings)
        proba = self._last.predict_proba(features) if self.has_proba else None
        return Answer(_plain(self._last.predict(features)), proba, embeddings)

    def _answer_whole(self, images: list[bytes]) -> Answer | BadImages:
        try:
            predictions = _plain(self.model.predict(images))
            return Answer(predictions, self.model.predict_proba(images) if self.has_proba else None, None)
        except InputError as error:
            if not error.rows:
                raise
            return BadImages({row.index: row.reason for row in error.rows})


def _after_embeddings(parts: Parts) -> tuple[Pipeline | None, Any]:
    """Return what transforms embeddings, if anything does, and what predicts from that."""
    if parts.has_head:
        return None, parts.predictor
    *steps, (_, last) = parts.rest.steps
    return (Pipeline(steps) if steps else None), last


class _RecordedRows:
    """Rows that remember why one of them cannot be used; the engine marks those by NaN alone."""

    def __init__(self, images: Sequence, max_pixels: int):
        self._images = images
        self._rows = open_rows(list(images), max_pixels=max_pixels)
        self._reasons: dict[Any, str] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> "_RecordedRow":
        try:
            return _RecordedRow(self._rows[index], self, index)
        except RowError as error:
            raise self.record(index, error) from error

    def label(self, index: int) -> str:
        return self._rows.label(index)

    def position(self, index: int) -> int:
        return self._rows.position(index)

    def record(self, index: int, error: RowError) -> RowError:
        self._reasons[self._images[index]] = str(error)
        return error

    def reason(self, index: int) -> str:
        """Return why a row cannot be used: by its content, for of equal rows the engine looks at one."""
        return self._reasons.get(self._images[index], "the backbone gives NaN or infinity for it")


class _RecordedRow:
    def __init__(self, row: Row, rows: _RecordedRows, index: int):
        self._row, self._rows, self._index = row, rows, index
        self.digest = row.digest

    def pixels(self) -> np.ndarray:
        try:
            return self._row.pixels()
        except RowError as error:
            raise self._rows.record(self._index, error) from error


def _plain(values: np.ndarray) -> list:
    """Return values as JSON has them."""
    plain = np.asarray(values).tolist()
    return [value if isinstance(value, str | int | float | bool | list) else str(value) for value in plain]
