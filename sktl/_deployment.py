"""A fitted model as two parts: images to embeddings by a network, embeddings to an answer by something small."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sktl._base import ImageEstimator
from sktl._finetuning import FineTuner
from sktl.backbones import FeatureView
from sktl.exceptions import InputError
from sktl.inputs import raise_bad_rows
from sktl.text_statistics import TextStatistics
from sktl.transformer import PretrainedFeatureTransformer


@dataclass(frozen=True)
class Parts:
    """What a fitted model does with images.

    Attributes
    ----------
    reader : ImageEstimator
        The part that reads images; says where and how its network runs.
    view : FeatureView
        Its network: images to embeddings.
    rest : estimator or None
        What takes the embeddings: the reader itself if it has a head, the remaining steps of a pipeline, or None if the
        embeddings are the result.
    kind : {"classifier", "regressor", "transformer"}
        What the model is as a whole.
    """

    reader: ImageEstimator
    view: FeatureView
    rest: BaseEstimator | None
    kind: str

    @property
    def has_head(self) -> bool:
        """Whether the embeddings go on to the reader's own head."""
        return self.rest is self.reader

    @property
    def is_multilabel(self) -> bool:
        """Whether the reader's own head predicts labels in columns, several of which may hold."""
        return self.has_head and getattr(self.reader, "multilabel_", False)

    @property
    def predictor(self) -> BaseEstimator | None:
        """An estimator that predicts from embeddings what the model predicts from images; None without ``rest``."""
        if self.rest is None:
            return None
        given = copy.copy(self.reader)
        given._embeddings = lambda X: X
        given._transform_with_stats = lambda X: (X, None)
        if self.has_head:
            return given
        # the next steps get a frame or a tensor where the reader's transform would return one
        return Pipeline([("embeddings", given), *self.rest.steps])

    def embed(self, X: Any) -> np.ndarray:
        """Compute the embeddings that the predictor takes.

        Parameters
        ----------
        X : sequence of images
            As for the model.

        Returns
        -------
        embeddings : ndarray of shape (n, width), float32
            One row per image.

        Raises
        ------
        InputError
            If images cannot be read, even where ``on_error="nan"`` would fill their rows with NaN.
        """
        if isinstance(self.reader, FineTuner):
            return self.reader._embeddings(X)
        embeddings, stats = self.reader._transform_with_stats(X)
        if stats.bad:
            raise_bad_rows(stats.bad, stats.rows)
        return embeddings

    @property
    def policy(self) -> dict[str, Any]:
        """Where and how the network runs: the options of :func:`sktl.embedding.embed` that the reader uses."""
        names = ["device", "dtype"]
        if isinstance(self.reader, PretrainedFeatureTransformer):
            names += ["runtime", "batch_size"]  # a fine-tuner's batch size is that of its training
        return {name: getattr(self.reader, name) for name in names}


def take_apart(model: Any) -> Parts | None:
    """Find the network of a fitted model, and what comes after it.

    Parameters
    ----------
    model : estimator
        One of sktl's, a pipeline that begins with one, or a search around either.

    Returns
    -------
    parts : Parts or None
        None for any other model.

    Raises
    ------
    NotFittedError
        If the model is not fitted.
    """
    model = innermost(model)
    steps = _steps_of(model) if isinstance(model, Pipeline) else [("", model)]
    reader = innermost(steps[0][1]) if steps else None
    if not isinstance(reader, FineTuner | PretrainedFeatureTransformer):
        return None
    check_is_fitted(reader)
    if len(steps) > 1:
        last = steps[-1][1]
        check_is_fitted(last)
        return Parts(reader, _view_of(reader), Pipeline(steps[1:]), _kind_of(last))
    return Parts(reader, _view_of(reader), reader if isinstance(reader, FineTuner) else None, _kind_of(reader))


def _steps_of(model: Pipeline) -> list[tuple[str, Any]]:
    """Return the steps of a pipeline that do something, by name; those of a pipeline in it stand in its place."""
    steps = []
    for name, step in model.steps:
        step = innermost(step)
        if isinstance(step, Pipeline):
            steps += [(f"{name}.{inner}", each) for inner, each in _steps_of(step)]
        elif step is not None and not isinstance(step, str):
            steps.append((name, step))
    return steps


def innermost(model: Any) -> Any:
    """Return the best estimator of a search, and the step of a pipeline that has only one."""
    while True:
        if hasattr(model, "best_estimator_"):
            model = model.best_estimator_
        elif isinstance(model, Pipeline) and len(_steps_of(model)) == 1:
            model = _steps_of(model)[0][1]
        else:
            return model


def labels_and_proba(predictor: Any, X: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Return predictions and class probabilities, from one run of the network where the predictor can do that.

    Parameters
    ----------
    predictor : estimator or OnnxModel
        With ``predict``.
    X : object
        What it takes.

    Returns
    -------
    labels : ndarray
        What ``predict`` gives.
    proba : ndarray or None
        None if it gives no probabilities.
    """
    if hasattr(predictor, "predict_with_proba"):
        return predictor.predict_with_proba(X)
    return predictor.predict(X), predictor.predict_proba(X) if hasattr(predictor, "predict_proba") else None


def check_takes_images(model: Any, asker: str) -> None:
    """Refuse a model that was fitted on texts, numbers or tables, as far as the estimators in it tell.

    Parameters
    ----------
    model : estimator
        Fitted.
    asker : str
        Subject of the error message, such as "The server".

    Raises
    ------
    InputError
        If it was fitted on other rows.
    NotFittedError
        If it is not fitted.
    """
    parts = take_apart(model)
    if parts is not None:
        kind = getattr(parts.reader, "input_kind_", "images")
    elif any(map(_reads_texts, _estimators_in(model, set()))):
        kind = "texts"
    else:
        n_columns = getattr(innermost(model), "n_features_in_", 1)
        kind = "images" if n_columns == 1 else f"a table of {n_columns} columns"
    if kind != "images":
        raise InputError(f"{asker} takes images, and this model was fitted on {kind}.")


def _reads_texts(estimator: Any) -> bool:
    return isinstance(estimator, TextStatistics) or getattr(estimator, "input_kind_", None) == "texts"


def _estimators_in(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield an estimator and those that it holds, in whatever attributes and lists."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, list | tuple):
        inner = value
    elif isinstance(value, BaseEstimator) or hasattr(value, "predict_proba"):  # calibrated ones are no BaseEstimator
        yield value
        inner = () if isinstance(value, ImageEstimator) else getattr(value, "__dict__", {}).values()
    else:
        return
    for each in inner:
        yield from _estimators_in(each, seen)


def _view_of(reader: ImageEstimator) -> FeatureView:
    return reader._view if isinstance(reader, PretrainedFeatureTransformer) else reader.backbone_.view


def _kind_of(estimator: Any) -> str:
    if is_classifier(estimator):
        return "classifier"
    return "regressor" if is_regressor(estimator) else "transformer"
