"""Rows of plain numbers, read as strips of grey."""

import hashlib
from functools import cached_property

import numpy as np
import torch
from torch import nn


class StripRow:
    """One row of numbers as a strip of grey that fills the network's input."""

    def __init__(self, values: np.ndarray, stretch: np.ndarray, height: int):
        self._values = values
        self._stretch = stretch
        self._height = height

    @cached_property
    def digest(self) -> bytes:
        """Content hash, 32 bytes."""
        return hashlib.sha256(b"strip" + self._values.tobytes()).digest()

    def model_input(self) -> np.ndarray:
        """Return a float32 array of shape (3, height, width): the row, stretched along the width."""
        strip = (self._values @ self._stretch).astype(np.float32)
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
        _, self._height, width = input_size
        self._values = np.ascontiguousarray(values, dtype=np.float64)
        self._stretch = _stretching(self._values.shape[1], width)
        self._positions = np.arange(len(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> StripRow:
        return StripRow(self._values[index], self._stretch, self._height)

    def label(self, index: int) -> str:
        """Name a row for error messages, by its position in X."""
        return f"row {self.position(index)}"

    def position(self, index: int) -> int:
        """Return where in X a row stands, also after :meth:`take`."""
        return int(self._positions[index])

    def take(self, indices: np.ndarray) -> "StripRows":
        """Return some of the rows."""
        taken = object.__new__(StripRows)
        taken._height, taken._stretch = self._height, self._stretch
        taken._values, taken._positions = self._values[indices], self._positions[indices]
        return taken


def _stretching(n_features: int, width: int) -> np.ndarray:
    """Return the matrix of shape (n_features, width) of antialiased linear interpolation."""
    identity = torch.eye(n_features, dtype=torch.float64)[:, None, None, :]
    stretched = nn.functional.interpolate(identity, size=(1, width), mode="bilinear", antialias=True)
    return stretched[:, 0, 0, :].numpy()
