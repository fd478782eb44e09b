"""A fitted transformer as it travels to the workers of a cluster."""

from copy import copy
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sktl.exceptions import InputError


class EmbeddingModel:
    """A fitted transformer that gives plain arrays, and takes its ``memory`` along when it is pickled.

    Parameters
    ----------
    transformer : PretrainedFeatureTransformer
        Fitted; left as it is.
    """

    def __init__(self, transformer):
        check_is_fitted(transformer)
        self.transformer = copy(transformer).set_params(cache_bytes=0, verbose=0)

    @property
    def width(self) -> int:
        """Number of values per embedding."""
        return self.transformer._view.width

    def __call__(self, X) -> np.ndarray:
        """Compute embeddings of shape (n, width), float32; none for no rows."""
        if len(X) == 0:
            return np.empty((0, self.width), dtype=np.float32)
        return self.transformer._transform_with_stats(X)[0]  # whatever container its user has asked for

    def __getstate__(self) -> dict[str, Any]:
        # A stored transformer forgets its folder, for it may be read elsewhere; here all workers are to share it.
        return {"transformer": self.transformer, "memory": self.transformer.memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.transformer = state["transformer"].set_params(memory=state["memory"])


def choose_column(names: list[str], column: str | None, what: str) -> str:
    """Return the column of images: the one named, or the only one there is.

    Raises
    ------
    InputError
        If there is no such column, or none is named and there are several.
    """
    if column is None and len(names) == 1:
        return names[0]
    if column is None:
        raise InputError(f"The {what} has the columns {names}; say which one holds the images, column=...")
    if column not in names:
        raise InputError(f"The {what} has no column {column!r}; its columns are {names}.")
    return column
