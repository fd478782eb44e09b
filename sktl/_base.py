"""What the estimators share: reading X, loading the backbone, computing embeddings."""

import os
from collections.abc import Mapping
from copy import deepcopy
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.callback import CallbackSupportMixin
from sklearn.utils._array_api import _convert_to_numpy, get_namespace
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils._repr_html.estimator import _VisualBlock
from sklearn.utils.validation import _check_feature_names, _check_sample_weight, check_is_fitted, validate_data
from torch import nn

from sktl._params import with_defaults
from sktl._spread import is_constant
from sktl.backbones import (
    Backbone,
    FeatureView,
    adapt_backbone,
    check_referable,
    current_shelf,
    input_kind,
    load_backbone,
    pack_module,
    pack_tensors,
    refer,
    unpack_module,
    unpack_tensors,
)
from sktl.embedding import EmbeddingStats, Store, default_store, embed_with_stats, open_store
from sktl.exceptions import BackboneError, InputError
from sktl.inputs import (
    StripRows,
    TextRows,
    find_texts,
    holds_images,
    open_rows,
    open_texts,
    refuse_nested,
    refuse_single,
    refuse_texts,
    refuse_unordered,
)


class EmbeddingMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Embeddings as the output of ``transform``: float32, named after the class."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


class ImageEstimator(CallbackSupportMixin, BaseEstimator):
    """Read X, whatever its form, and turn its rows into embeddings.

    With a text backbone rows are texts. With any other they are images, or numbers.

    Rows of numbers are read in one of two ways. With ``image_shape`` they are flattened images: 8-bit values as they
    are, others brought to 8 bits by the smallest and largest value seen in ``fit``. Without it each row is a strip of
    grey, standardised by the mean and the standard deviation of all values seen in ``fit``. Rows of weight 0 are not
    seen.
    """

    def _sk_visual_block_(self) -> _VisualBlock:
        """Name strategy and backbone in the HTML representation, below the class and before it is opened."""
        parts = [getattr(self, "strategy", None), self.backbone]
        caption = " · ".join(_short(part) for part in parts if part is not None)
        return _VisualBlock("single", self, names=type(self).__name__, name_details=str(self), name_caption=caption)

    def __sklearn_clone__(self):
        """Keep a fitted estimator that serves as backbone as it is: its copy would have to be fitted anew."""
        cloned = super().__sklearn_clone__()
        if isinstance(self.backbone, ImageEstimator):
            cloned.backbone = self.backbone
        return cloned

    def _load_backbone(self) -> Backbone:
        if self.persist == "reference":
            check_referable(self.backbone, self.weights)
        if isinstance(self.backbone, ImageEstimator):
            if not (isinstance(self.weights, str) and self.weights == "pretrained"):
                raise BackboneError("The 'weights' parameter is for named backbones; a fitted estimator has its own.")
            return adapt_backbone(self.backbone._as_backbone(), self.data_config, self.image_size)
        return load_backbone(self.backbone, self.weights, self.data_config, self.image_size)

    def _takes_texts(self) -> bool:
        if isinstance(self.backbone, ImageEstimator):
            return self.backbone._takes_texts()
        return input_kind(self.backbone) == "texts"

    def _as_backbone(self) -> Backbone:
        """Return what the fitted estimator is to another one that has it as ``backbone=``."""
        message = "The %(name)s given as backbone= is not fitted yet. Call its 'fit' first, or name a backbone instead."
        check_is_fitted(self, msg=message)
        return self.backbone_

    def _check_input(self, X, *, reset: bool, **checks: Any):
        """Return X if it holds images or texts, else the table that scikit-learn makes of it; remember or compare."""
        if getattr(X, "ndim", 1) not in (0, 2) and hasattr(X, "__len__") and len(X) == 0:
            raise InputError("X is empty: at least one row is required.")
        if self._takes_texts() if reset else self.input_kind_ == "texts":
            kind = "texts"
            self._check_texts(X, reset)
        elif holds_images(X):
            kind = "images"
            refuse_single(X)  # before its length passes for a number of rows
            refuse_texts(X, self.root)
            self._check_columns(X, reset)
        else:
            kind = "numbers"
            refuse_unordered(X)
            refuse_nested(X)
            X = self._check_table(X, reset, checks)
        if reset:
            self.input_kind_ = kind
            self._is_grey_stack = getattr(X, "ndim", None) == 3
            if self._is_grey_stack:
                open_rows(X)  # refuses what may be a single image in colour
        elif kind != self.input_kind_:
            raise InputError(
                f"X holds {kind}, but {type(self).__name__} was fitted on {self.input_kind_}; give the same form of "
                "input as in fit."
            )
        return X

    def _check_texts(self, X, reset: bool) -> None:
        """Make sure that X is a column, and that no parameter speaks of images."""
        for parameter in ("image_shape", "channels", "root"):
            if getattr(self, parameter) is not None:
                raise InputError(
                    f"The {parameter!r} parameter must be None for backbone={self.backbone!r}: it takes texts."
                )
        find_texts(X)
        self._check_columns(X, reset)

    def _check_table(self, X, reset: bool, checks: dict[str, Any]) -> np.ndarray:
        """Return the numbers of a table, as scikit-learn reads it."""
        try:
            table = validate_data(self, X, reset=reset, dtype="numeric", **checks)
            if not isinstance(table, np.ndarray):  # under array API dispatch it is what the user gave
                table = _convert_to_numpy(table, get_namespace(table)[0])
            return table if table.dtype.kind in "biuf" else table.astype(np.float64)  # pandas' own strings come through
        except ValueError as error:
            _explain_columns_of_images(X, error)
            raise

    def _check_columns(self, X, reset: bool) -> None:
        """Let a frame of one column of images or texts have scikit-learn's names; other containers have none."""
        if reset:
            self._forget("n_features_in_", "feature_names_in_")
        if hasattr(X, "columns"):
            _check_feature_names(self, X, reset=reset)
            if reset:
                self.n_features_in_ = 1

    def _forget(self, *names: str) -> None:
        """Let go of what an earlier call found, where there was one."""
        for name in names:
            vars(self).pop(name, None)

    def _learn_scaling(self, X, sample_weight=None) -> None:
        """Learn from a table how its numbers become pixels; images and texts need nothing of the kind."""
        self.offset_, self.scale_ = 0.0, 1.0
        if self.input_kind_ != "numbers":
            return
        if sample_weight is not None:  # checked by the caller
            X, sample_weight = X[sample_weight > 0], sample_weight[sample_weight > 0]
        if self.image_shape is not None:
            self._check_image_shape(X)
            if X.dtype == np.uint8:
                self.scale_ = 255.0
            else:
                self.offset_ = float(X.min())
                self.scale_ = float(X.max()) - self.offset_ or 1.0
            return
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        values = X.astype(np.float64)
        mean = np.average(values.mean(axis=1), weights=weight)
        variance = np.average(((values - mean) ** 2).mean(axis=1), weights=weight)
        # Rounded, so that a row's hash does not depend on the order in which the rows were summed.
        self.offset_ = float(np.float32(mean))
        self.scale_ = 1.0 if is_constant(mean, variance, values.size) else float(np.float32(variance**0.5)) or 1.0

    def _check_image_shape(self, X) -> None:
        shape = tuple(self.image_shape)
        are_sizes = all(isinstance(size, Integral) and size > 0 for size in shape)
        if len(shape) not in (2, 3) or not are_sizes or int(np.prod(shape)) != X.shape[1]:
            raise InputError(
                "The 'image_shape' parameter must be (height, width) or (height, width, channels) with a product of "
                f"{X.shape[1]}, the number of columns of X; got {self.image_shape!r} instead."
            )
        place = "first" if self.channels == "first" else "last"
        n_channels = 1 if len(shape) == 2 else shape[0 if place == "first" else -1]
        if n_channels not in (1, 3, 4):
            raise InputError(
                f"The 'image_shape' parameter {self.image_shape!r} has {n_channels} channels, if they come {place}; an "
                "image has 1, 3 or 4. The 'channels' parameter says whether they come first or last."
            )

    def _open_rows(self, X, backbone: Backbone):
        """Return the rows of a checked X."""
        if self.input_kind_ == "texts":
            return open_texts(X, backbone.tokenizer)
        if self.input_kind_ == "images":
            settings = {"root": self.root, "max_pixels": self.max_pixels, "known_stack": self._is_grey_stack}
            return open_rows(X, channels=self.channels, **settings)
        if self.image_shape is None:
            return StripRows((X.astype(np.float64) - self.offset_) / self.scale_, backbone.data_config["input_size"])
        pixels = np.rint(((X.astype(np.float64) - self.offset_) / self.scale_).clip(0, 1) * 255).astype(np.uint8)
        if len(self.image_shape) == 2:
            return open_rows(pixels.reshape(len(X), *self.image_shape, 1), channels="last")
        return open_rows(pixels.reshape(len(X), *self.image_shape), channels=self.channels or "last")

    def _embed(self, rows, view: FeatureView, *, stored: bool = True, **options: Any) -> np.ndarray:
        """Compute embeddings of shape (n, width), float32, or find them in a store."""
        return self._embed_with_stats(rows, view, stored=stored, **options)[0]

    def _embed_with_stats(
        self, rows, view: FeatureView, *, stored: bool = True, **options: Any
    ) -> tuple[np.ndarray, EmbeddingStats]:
        """Compute or find embeddings, and say what it took."""
        stores = self._stores() if stored else []
        embeddings, stats = embed_with_stats(
            rows,
            view,
            device=self.device,
            dtype=self.dtype,
            stores=stores,
            verbose=int(self.verbose),
            **options,
        )
        warn_of_truncation(rows, view.data_config)
        return embeddings, stats

    def _stores(self) -> list:
        memory = [default_store(self.cache_bytes)] if self.cache_bytes else []
        disk = open_store(self.memory)
        return memory if disk is None else [*memory, disk]

    def __copy__(self):
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)  # by reference, and so without the way through __getstate__
        return copied

    def __deepcopy__(self, memo):
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(deepcopy(self.__getstate__(), memo))
        copied.memory = self.memory  # a copy stays on this machine
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Return settings and numbers, nothing that belongs to one machine or device."""
        state = dict(super().__getstate__())
        for name in ("backbone", "head"):
            if isinstance(state.get(name), nn.Module):
                state[name] = pack_module(state[name])
        if isinstance(state.get("weights"), Mapping):
            state["weights"] = {"packed": pack_tensors(state["weights"])}
        is_fitted, is_for_file = "backbone_" in state, current_shelf() is not None
        if is_fitted or is_for_file:
            state["memory"] = None  # a folder of this machine; all that is in it can be computed anew
        if is_fitted and state.get("persist") == "reference":
            state["backbone_"] = self._as_reference(state["backbone_"])
        if is_for_file:
            state.update(_paths_as_text(state))
        return state

    def _as_reference(self, backbone: Backbone) -> Backbone:
        """Return what a pickle or a file holds of a backbone whose public weights need not be in it."""
        weights = backbone.reference
        if weights is None:
            source = {name: getattr(self, name) for name in ("backbone", "weights", "data_config", "image_size")}
            weights = refer(backbone.module.state_dict(), backbone.low_rank, **source)
        return backbone.with_weights(weights)

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = with_defaults(type(self), state)
        for name in ("backbone", "head"):
            if isinstance(state.get(name), dict):
                state[name] = unpack_module(state[name])
        if isinstance(state.get("weights"), dict):
            state["weights"] = unpack_tensors(state["weights"]["packed"])
        super().__setstate__(state)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        takes_texts = self._takes_texts()
        tags.input_tags.two_d_array = not takes_texts
        tags.input_tags.three_d_array = not takes_texts
        return tags


def warn_of_truncation(rows, data_config: dict[str, Any]) -> None:
    """Warn if rows are texts of which some were cut off, once for the same rows."""
    if isinstance(rows, TextRows):
        rows.warn_of_truncation(data_config["max_length"])


def _paths_as_text(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that are paths as a file holds them; it does not tell in which folder weights were."""
    paths = {name: os.fspath(value) for name, value in state.items() if isinstance(value, os.PathLike)}
    weights = state.get("weights")
    if isinstance(weights, str | os.PathLike):
        paths["weights"] = os.path.basename(weights)
    return paths


SHARED_CONSTRAINTS: dict[str, list] = {
    "backbone": [str, nn.Module, ImageEstimator],
    "weights": [str, os.PathLike, Mapping, None],
    "data_config": [Mapping, None],
    "image_size": [Interval(Integral, 1, None, closed="left"), tuple, None],
    "image_shape": [tuple, list, None],
    "channels": [StrOptions({"first", "last"}), None],
    "root": [str, os.PathLike, None],
    "device": [str, torch.device],
    "dtype": [StrOptions({"auto", "float32", "bfloat16", "float16"})],
    "max_pixels": [Interval(Integral, 1, None, closed="left")],
    "memory": [str, os.PathLike, HasMethods("cache"), Store, None],
    "cache_bytes": [Interval(Integral, 0, None, closed="left")],
    "persist": [StrOptions({"embed", "reference"})],
    "verbose": ["verbose"],
}


def _explain_columns_of_images(X, error: ValueError) -> None:
    """Say what to do with a frame of several columns of which some hold images, and so are no numbers."""
    if not hasattr(X, "columns") or not hasattr(X, "__getitem__") or len(X.columns) < 2:
        return
    names = [repr(name) for name in X.columns if isinstance(name, str) and holds_images(X[name])]
    if names:
        raise InputError(
            f"X has {len(X.columns)} columns, of which {', '.join(names)} may hold images; one column of images is "
            f"expected. Choose it, X[{names[0]}], or let a ColumnTransformer give each column to its own estimator."
        ) from error


def _short(parameter: Any) -> str:
    """Name a strategy or a backbone in a few words."""
    if isinstance(parameter, nn.Module | ImageEstimator):
        return type(parameter).__name__
    return parameter if isinstance(parameter, str) else repr(parameter)
