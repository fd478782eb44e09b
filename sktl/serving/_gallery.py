"""Training images to show beside a prediction: those that the network sees as most alike."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sktl.exceptions import InputError
from sktl.inputs import open_rows
from sktl.serving._model import ServedModel
from sktl.serving._pictures import encode

_THUMBNAIL_SIDE = 192
_N_THUMBNAILS_KEPT = 512


class Similar(NamedTuple):
    """An image of the gallery.

    Attributes
    ----------
    index : int
        Its number.
    name : str
        Its path within the folder.
    similarity : float
        Cosine of the angle between the embeddings.
    """

    index: int
    name: str
    similarity: float


class Gallery:
    """The images of a folder with their embeddings, to find those most similar to another image.

    Parameters
    ----------
    paths : sequence of path-like
        Image files.
    root : path-like
        The folder that they are in; names are relative to it.
    model : ServedModel
        Embeds them.

    Attributes
    ----------
    names : list of str
        Of the images that can be read.
    bad : list of (str, str)
        Names of the others, and why they cannot be read.

    Raises
    ------
    InputError
        If the model has no network that embeds images, or none of the images can be read.
    """

    def __init__(self, paths: Sequence, root, model: ServedModel):
        if not model.shares_passes:
            raise InputError(
                "A gallery compares embeddings: serve an estimator of sktl, or a Pipeline that begins with one."
            )
        if not paths:
            raise InputError(f"There is no image in the folder {str(root)!r}.")
        embeddings, reasons = model.embed([str(path) for path in paths])
        good = [place for place in range(len(paths)) if place not in reasons]
        names = [Path(path).relative_to(root).as_posix() for path in paths]
        self.bad = [(names[place], reason) for place, reason in reasons.items()]
        if not good:
            raise InputError(f"No image in the folder {str(root)!r} can be read; the first: {self.bad[0][1]}.")
        self.names = [names[place] for place in good]
        self._paths = [paths[place] for place in good]
        self._directions = _directions(embeddings[good])
        self._max_pixels = model.max_pixels
        self.thumbnail = lru_cache(_N_THUMBNAILS_KEPT)(self._thumbnail)

    def __len__(self) -> int:
        return len(self.names)

    def most_similar(self, embeddings: np.ndarray, n_similar: int) -> list[list[Similar]]:
        """Find the images that are most alike.

        Parameters
        ----------
        embeddings : ndarray of shape (n, width)
            Of the images to compare with.
        n_similar : int
            How many to find.

        Returns
        -------
        similar : list of list of Similar
            For each embedding, the most similar first.
        """
        found = []
        for cosines in _directions(embeddings) @ self._directions.T:
            best = np.argsort(-cosines, kind="stable")[:n_similar]
            found.append([Similar(int(place), self.names[place], float(cosines[place])) for place in best])
        return found

    def _thumbnail(self, index: int) -> bytes:
        """Return a small JPEG of an image.

        Parameters
        ----------
        index : int
            Its number.

        Raises
        ------
        IndexError
            If there is no such image.
        RowError
            If its file is not there any more, or another one.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        (row,) = open_rows([self._paths[index]], max_pixels=self._max_pixels)
        return encode(row.pixels(), "JPEG", _THUMBNAIL_SIDE)


def _directions(embeddings: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(lengths > 0, lengths, 1)
