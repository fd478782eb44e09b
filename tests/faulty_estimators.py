"""Image estimators that know nothing of sktl: good ones, and what may be wrong with one."""

import os
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted


class MeanColour(TransformerMixin, BaseEstimator):
    """The mean colour of each image."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def fit(self, X, y=None):
        self.n_seen_ = len(self.embed(X))
        return self

    def transform(self, X):
        check_is_fitted(self)
        return self.embed(X)

    def embed(self, X):
        if len(X) == 0:
            raise ValueError("X is empty.")
        return np.array([self.one(self.read(row, i)) for i, row in enumerate(X)])

    def one(self, pixels):
        return pixels.mean(axis=(0, 1)) * self.scale

    def read(self, row, i):
        try:
            if isinstance(row, str | Path):
                with Image.open(row) as picture:
                    return np.asarray(picture.convert("RGB"), dtype=float)
            if isinstance(row, Image.Image):
                return np.asarray(row.convert("RGB"), dtype=float)
            if not isinstance(row, np.ndarray):
                raise ValueError(f"{type(row).__name__} is no image")
            return row.astype(float)
        except (OSError, ValueError) as error:
            raise ValueError(f"X[{i}] = {row!r}: {error}") from error


class NearestColour(ClassifierMixin, MeanColour):
    """The class whose weighted mean colour is nearest."""

    def fit(self, X, y, sample_weight=None):
        check_consistent_length(X, y)
        embedded, y = self.embed(X), np.asarray(y)
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight)
        self.classes_ = np.unique(y[weight > 0])
        self.means_ = np.array(
            [np.average(embedded[y == label], axis=0, weights=weight[y == label]) for label in self.classes_]
        )
        return self

    def decision_function(self, X):
        check_is_fitted(self)
        return -np.linalg.norm(self.embed(X)[:, None] - self.means_, axis=2)

    def predict(self, X):
        best = self.decision_function(X).argmax(axis=1)
        return self.classes_[best]


FAULTS = {}


def fault(*names):
    """Register an estimator with the checks that must find what is wrong with it; all others must pass."""

    def register(kind):
        FAULTS[kind.__name__] = (kind, set(names))
        return kind

    return register


@fault("check_constructor_stores_parameters", "...")  # scikit-learn refuses to clone it
class RewritesInConstructor(MeanColour):
    def __init__(self, scale=1.0):
        self.scale = float(scale) + 1


@fault("check_fit_returns_self", "check_pipeline", "check_cross_val_score")
class ReturnsNothing(MeanColour):
    def fit(self, X, y=None):
        super().fit(X)


@fault("check_fit_leaves_parameters")
class RewritesInFit(MeanColour):
    def fit(self, X, y=None):
        self.scale = 1
        return super().fit(X)


@fault("check_unfitted_is_said")
class TransformsUnfitted(MeanColour):
    def transform(self, X):
        return self.embed(X)


@fault("check_pickle")
class HoldsALambda(MeanColour):
    def fit(self, X, y=None):
        self.embed_ = lambda X: X
        return super().fit(X)


@fault("check_pickle")
class ForgetsInPickle(NearestColour):
    def __getstate__(self):
        return {**super().__getstate__(), "means_": np.zeros((3, 3))}


@fault("check_broken_files_are_named", "check_rows_that_hold_no_image")
class DropsBadRows(MeanColour):
    def embed(self, X):
        rows = []
        for i, row in enumerate(X):
            try:
                rows.append(self.one(self.read(row, i)))
            except ValueError:
                continue
        if not rows:
            raise ValueError("X is empty.")
        return np.array(rows)


@fault("check_broken_files_are_named", "check_rows_that_hold_no_image")
class NamesNoRow(MeanColour):
    def read(self, row, i):
        try:
            return super().read(row, i)
        except ValueError:
            raise ValueError("an image cannot be read") from None


@fault("check_one_output_per_image", "check_order_of_rows", "check_subsets_of_rows", "check_sizes_may_differ")
class ForgetsTheLastRow(MeanColour):
    def transform(self, X):
        check_is_fitted(self)
        rows = self.embed(X)
        return rows[: max(1, len(rows) // 4 * 4)] if len(rows) == 18 else rows


@fault("check_containers_agree")
class ReadsFilesAsBGR(MeanColour):
    def read(self, row, i):
        pixels = super().read(row, i)
        return pixels if isinstance(row, np.ndarray) else pixels[..., ::-1]


@fault("check_sizes_may_differ")
class StacksPixels(MeanColour):
    def embed(self, X):
        if len(X) == 0:
            raise ValueError("X is empty.")
        return np.stack([self.read(row, i) for i, row in enumerate(X)]).mean(axis=(1, 2))


@fault("check_modes_agree")
class TakesModesAsTheyAre(MeanColour):
    def read(self, row, i):
        if isinstance(row, str | Path) and os.path.exists(row) and "_P" in str(row):
            return np.asarray(Image.open(row), dtype=float)[..., None].repeat(3, 2)
        return super().read(row, i)


@fault("check_order_of_rows", "check_subsets_of_rows")
class DependsOnPlace(MeanColour):
    def embed(self, X):
        rows = super().embed(X)
        return rows + np.arange(len(rows))[:, None]


@fault("check_subsets_of_rows")
class StandardisesTheBatch(MeanColour):
    def embed(self, X):
        rows = super().embed(X)
        return rows - rows.mean(axis=0)


@fault("check_input_is_not_changed")
class WritesIntoArrays(MeanColour):
    def read(self, row, i):
        pixels = super().read(row, i)
        if isinstance(row, np.ndarray):
            row[0, 0] = 0
        return pixels


@fault("check_input_is_not_changed", "check_modes_agree")  # such a colour does not fit a grey picture
class WritesIntoPictures(MeanColour):
    def read(self, row, i):
        pixels = super().read(row, i)
        if isinstance(row, Image.Image):
            row.putpixel((0, 0), (1, 2, 3))
        return pixels


@fault("check_no_rows")
class TakesNoRows(MeanColour):
    def embed(self, X):
        return super().embed(X) if len(X) else np.empty((0, 3))


@fault("check_lengths_must_agree")
class TakesTooFewLabels(NearestColour):
    def fit(self, X, y, sample_weight=None):
        X = X[: len(y)]
        return super().fit(X, y, sample_weight)


@fault("check_labels", "check_cross_val_score")
class GivesPositionsOfClasses(NearestColour):
    def predict(self, X):
        return self.decision_function(X).argmax(axis=1)


@fault("check_labels")
class MixesUpClasses(NearestColour):
    def predict(self, X):
        worst = self.decision_function(X).argmin(axis=1)
        return self.classes_[worst]


@fault("check_zero_weight_is_absence", "check_weight_is_repetition")
class IgnoresWeights(NearestColour):
    def fit(self, X, y, sample_weight=None):
        return super().fit(X, y)


@fault("check_weight_is_repetition")
class TakesWeightsAsYesOrNo(NearestColour):
    def fit(self, X, y, sample_weight=None):
        return super().fit(X, y, None if sample_weight is None else np.asarray(sample_weight) > 0)


@fault("check_fit_starts_anew")
class Remembers(NearestColour):
    def fit(self, X, y, sample_weight=None):
        before = getattr(self, "means_", 0.0)
        super().fit(X, y, sample_weight)
        self.means_ = self.means_ + 0.1 * before
        return self


@fault("check_fit_starts_anew", "check_global_state_is_left_alone", "check_zero_weight_is_absence", "...")
class DrawsFromNumpy(NearestColour):
    def fit(self, X, y, sample_weight=None):
        super().fit(X, y, sample_weight)
        self.means_ = self.means_ + np.random.rand()  # noqa: NPY002
        return self


class ChangesGlobalState(MeanColour):
    def fit(self, X, y=None):
        self.change()
        return super().fit(X)


@fault("check_global_state_is_left_alone")
class SeedsNumpy(ChangesGlobalState):
    def change(self):
        np.random.seed(0)  # noqa: NPY002


@fault("check_global_state_is_left_alone")
class SeedsPython(ChangesGlobalState):
    def change(self):
        random.seed(0)


@fault("check_global_state_is_left_alone")
class SeedsTorch(ChangesGlobalState):
    def change(self):
        torch.manual_seed(0)


@fault("check_global_state_is_left_alone")
class LiftsTheLimitOfPixels(ChangesGlobalState):
    def change(self):
        Image.MAX_IMAGE_PIXELS = None


@fault("check_global_state_is_left_alone", "check_broken_files_are_named")
class ReadsTruncatedFiles(ChangesGlobalState):
    def change(self):
        ImageFile.LOAD_TRUNCATED_IMAGES = True


@fault("check_global_state_is_left_alone")
class SetsThreads(ChangesGlobalState):
    def change(self):
        torch.set_num_threads(3)
