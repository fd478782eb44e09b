"""Random variants of the training images, in the loop and as rows to embed."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from sktl.exceptions import InputError
from sktl.inputs import Augmenter, ImagePreprocessor

DECODING_THREADS = 4


@dataclass(frozen=True)
class Views:
    """Random variants of the training images: the same for the same row, number and seed, in any thread.

    Attributes
    ----------
    augment : Augmenter
        Takes pixels of the network's input size and a seed.
    seed : int
        Of all variants.
    n_kept : int or None
        How many variants of each image there are; None makes new ones in each epoch.
    """

    augment: Augmenter
    seed: int
    n_kept: int | None = None

    def make(self, images: torch.Tensor, index: torch.Tensor, number: int) -> torch.Tensor:
        """Return a variant each of some images.

        Parameters
        ----------
        images : tensor of uint8, shape (n, height, width, 3)
            Of the network's input size.
        index : tensor of int, shape (n,)
            Their rows.
        number : int
            Which variant.
        """
        check_images(images.dtype == torch.uint8)

        def variant(image: np.ndarray, row: int) -> np.ndarray:
            return self.augment(image, self.seed_of(row, number))

        with ThreadPoolExecutor(DECODING_THREADS) as threads:
            return torch.from_numpy(np.stack(list(threads.map(variant, images.numpy(), index.tolist()))))

    def seed_of(self, row: int, number: int) -> int:
        """Return the seed of a variant of a row."""
        return int(np.random.SeedSequence((self.seed, row, number)).generate_state(1)[0])


def check_images(holds: bool) -> None:
    """Refuse rows that have no pixels."""
    if not holds:
        raise InputError("augment= needs images: texts, and rows of numbers read as strips of grey, have no variants.")


class VariantRows:
    """Kept variants of images as rows for the embedding engine: all rows' first variant, then their second, ...

    Parameters
    ----------
    rows : Rows
        The images.
    preprocess : ImagePreprocessor
        Brings pixels to the network's input size.
    views : Views
        With a number of kept variants.
    """

    def __init__(self, rows, preprocess: ImagePreprocessor, views: Views):
        self.rows = rows
        self.preprocess = preprocess
        self.views = views

    def __len__(self) -> int:
        return len(self.rows) * self.views.n_kept

    def __getitem__(self, index: int) -> "VariantRow":
        number, row = divmod(index, len(self.rows))
        return VariantRow(self.rows[row], self.preprocess, self.views, self.views.seed_of(row, number))

    def label(self, index: int) -> str:
        """Name a row for error messages."""
        return self.rows.label(index % len(self.rows))

    def position(self, index: int) -> int:
        """Return where in X the image of a row stands."""
        return self.rows.position(index % len(self.rows))


class VariantRow:
    """One variant of an image."""

    def __init__(self, row, preprocess: ImagePreprocessor, views: Views, seed: int):
        self.row = row
        self.preprocess = preprocess
        self.views = views
        self.seed = seed

    @property
    def digest(self) -> bytes:
        """A content hash: of the image, of how it is varied, and of the seed."""
        check_images(hasattr(self.row, "pixels"))
        return hashlib.sha256(self.row.digest + f"{self.views.augment.key}:{self.seed}".encode()).digest()

    def model_input(self) -> np.ndarray:
        """Return the variant as a float32 array of shape (3, height, width), normalised."""
        check_images(hasattr(self.row, "pixels"))
        config = self.preprocess.config
        pixels = self.views.augment(self.preprocess(self.row.pixels()), self.seed).astype(np.float32)
        normalised = (pixels / 255 - np.float32(config["mean"])) / np.float32(config["std"])
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))
