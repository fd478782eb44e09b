"""Rows of plain numbers, read as strips of grey."""

import hashlib
from functools import cached_property

import numpy as np
import torch
from torch import nn


class StripRow:
    """One row of numbers as a strip of grey that fills the network's input."""

    def __init__(self, values: np.ndarray, height: int, width: int):
        self._values = values
        self._height = height
        self._width = width

    @cached_property
    def digest(self) -> bytes:
        """Content hash, 32 bytes."""
        return hashlib.sha256(b"strip" + self._values.tobytes()).digest()

    def model_input(self) -> np.ndarray:
        """Return a float32 array of shape (3, height, width): the row, stretched along the width."""
        strip = _stretched(self._values, self._width).astype(np.float32)
        return np.broadcast_to(strip, (3, self._height, len(strip))).copy()


class StripRows:
    """Rows of a table of numbers, for a network that takes images.

    Parameters
    ----------
    values : ndarray of float, shape (n, n_features)
        Standardised already: they take the place of normalised pixels.
    input_size : (int, int, int)
        Channels, height and width of the network's input.
    """

    def __init__(self, values: np.ndarray, input_size):
        _, self._height, self._width = input_size
        self._values = np.ascontiguousarray(values, dtype=np.float64)
        self._positions = np.arange(len(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> StripRow:
        return StripRow(self._values[index], self._height, self._width)

    def label(self, index: int) -> str:
        """Name a row for error messages, by its position in X."""
        return f"row {self.position(index)}"

    def position(self, index: int) -> int:
        """Return where in X a row stands, also after :meth:`take`."""
        return int(self._positions[index])

    def take(self, indices: np.ndarray) -> "StripRows":
        """Return some of the rows."""
        taken = object.__new__(StripRows)
        taken._height, taken._width = self._height, self._width
        taken._values, taken._positions = self._values[indices], self._positions[indices]
        return taken


def _stretched(values: np.ndarray, width: int) -> np.ndarray:
    """Bring numbers to a width by antialiased linear interpolation; needs no matrix of all of them by all."""
    strip = torch.tensor(values)[None, None, None, :]
    return nn.functional.interpolate(strip, size=(1, width), mode="bilinear", antialias=True)[0, 0, 0].numpy()
