"""Rows and targets as batches for the training loop."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sktl.backbones import PADDING
from sktl.exceptions import BadRow
from sktl.inputs import RowError, raise_bad_rows
from sktl.training.prefix import Activations
from sktl.training.views import DECODING_THREADS, Views

RAM_BUDGET = 2**31


@dataclass(frozen=True)
class Targets:
    """What the network should say, and how much each row counts.

    Attributes
    ----------
    values : ndarray of shape (n,) or (n, n_outputs)
        Class indices or numbers.
    weight : ndarray of float, shape (n,)
        Positive sample weights: a row of weight 2 is the same as two rows.
    class_weight : ndarray of float, shape (n_classes,), or None
        How much the loss of a row of each class counts.
    """

    values: np.ndarray
    weight: np.ndarray
    class_weight: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    def take(self, indices: np.ndarray) -> "Targets":
        """Return the targets of some rows."""
        return Targets(self.values[indices], self.weight[indices], self.class_weight)

    @property
    def are_classes(self) -> bool:
        """Whether a row has one class; else it has numbers, or a label in each column."""
        return np.issubdtype(self.values.dtype, np.integer)

    @property
    def loss_weight(self) -> np.ndarray:
        """How much each row's loss counts."""
        return self.weight if self.class_weight is None else self.weight * self.class_weight[self.values]


class TrainingData(Dataset):
    """Rows made ready for the network once, and kept in memory as 8-bit images or tokens where they fit a budget.

    Parameters
    ----------
    rows : sequence of rows
        Anything with ``label(i)`` whose items have ``pixels()``, or ``model_input()`` if they need no preprocessing.
    targets : Targets
        One per row.
    preprocess : callable or None
        Brings pixels of shape (height, width, 3) to the backbone's input size; texts need none.
    views : Views, default=None
        Random variants to give in place of the images.
    mean_weight : float, default=None
        What a row counts on average, by which loss weights are divided; None takes their mean over these rows.

    Attributes
    ----------
    epoch : int
        Decides which variants are given.
    activations : Activations or None
        What stands for the images where the frozen part of a network has been run on them already.
    left_over : Activations or None
        Activations that an earlier net made; unused until another net takes them over.

    Raises
    ------
    InputError
        If rows cannot be read; names them all.
    """

    activations: Activations | None = None
    left_over: Activations | None = None
    epoch: int = 0

    def __init__(
        self,
        rows,
        targets: Targets,
        preprocess: Callable[[np.ndarray], np.ndarray] | None,
        views: Views | None = None,
        mean_weight: float | None = None,
    ):
        self.rows = rows
        self.targets = targets
        self.preprocess = preprocess
        self.views = views
        self._values = torch.as_tensor(targets.values)
        # Over all rows, not by batch, so that a batch of light rows counts less than one of heavy rows.
        mean_weight = targets.loss_weight.mean() if mean_weight is None else mean_weight
        self._weight = torch.as_tensor(targets.loss_weight / mean_weight, dtype=torch.float32)
        self._images = self._load_all() if self._fits_in_memory() else None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        index = torch.as_tensor(indices)
        number = self.epoch if self.n_kept is None else self.epoch % self.n_kept
        if self.activations is not None:
            inputs = self.activations.values[number * len(self) + index]
        else:
            inputs = self.inputs(index, number)
        return inputs, {"target": self._values[index], "weight": self._weight[index], "row": index}

    @property
    def n_kept(self) -> int | None:
        """How many variants of each row there are; None if there are new ones in each epoch."""
        return 1 if self.views is None else self.views.n_kept

    def inputs(self, index: torch.Tensor, number: int) -> torch.Tensor:
        """Return one variant of some rows as the network takes them, whatever is kept of them.

        Parameters
        ----------
        index : tensor of int
            Which rows.
        number : int
            Which variant.
        """
        images = self._images[index] if self._images is not None else torch.from_numpy(self._load(index.tolist()))
        if self.views is not None:
            return self.views.make(images, index, number)
        return _without_padding(images) if images.dtype == torch.int32 else images

    def first_images(self) -> torch.Tensor:
        """Return two images, or the only one, to try a network on."""
        return self.inputs(torch.arange(min(2, len(self))), 0)

    def draw(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw rows with torch's default generator: each at most once, unless there are fewer than asked for.

        Parameters
        ----------
        n : int
            How many.

        Returns
        -------
        images, values : tensor
            Of the rows drawn.
        """
        index = torch.randperm(len(self))[:n] if n <= len(self) else torch.randint(len(self), (n,))
        return self.inputs(index, 0), self._values[index]

    def _fits_in_memory(self) -> bool:
        return self._load([0]).nbytes * len(self) <= RAM_BUDGET

    def _load_all(self) -> torch.Tensor:
        return torch.from_numpy(self._load(range(len(self))))

    def _load(self, indices) -> np.ndarray:
        return _stack(map_rows(self._prepare_row, self.rows, indices))

    def _prepare_row(self, index: int) -> np.ndarray:
        row = self.rows[index]
        return row.model_input() if hasattr(row, "model_input") else self.preprocess(row.pixels())


def _stack(inputs: list[np.ndarray]) -> np.ndarray:
    """Make one array of the inputs of rows; the tokens of texts are filled up to the longest."""
    if inputs[0].dtype != np.int32:
        return np.stack(inputs)
    tokens = np.full((len(inputs), max(map(len, inputs))), PADDING, dtype=np.int32)
    for row, ids in zip(tokens, inputs, strict=True):
        row[: len(ids)] = ids
    return tokens


def _without_padding(tokens: torch.Tensor) -> torch.Tensor:
    """Cut off what is padding in all rows of a batch."""
    used = (tokens != PADDING).any(dim=0).nonzero()
    return tokens[:, : int(used.max()) + 1]


def map_rows(read: Callable[[int], Any], rows, indices: Iterable[int]) -> list:
    """Read rows in threads.

    Parameters
    ----------
    read : callable
        Takes an index; may raise :class:`~sktl.inputs.RowError`.
    rows : sequence of rows
        Gives the labels for error messages.
    indices : iterable of int
        Which rows.

    Raises
    ------
    InputError
        If rows cannot be read; names them all.
    """

    def attempt(index: int) -> Any:
        try:
            return read(index)
        except RowError as error:
            return BadRow(rows.position(index), rows.label(index), str(error))

    with ThreadPoolExecutor(DECODING_THREADS) as threads:
        outcomes = list(threads.map(attempt, indices))
    bad = [outcome for outcome in outcomes if isinstance(outcome, BadRow)]
    if bad:
        raise_bad_rows(bad)
    return outcomes


def merge_duplicates(rows, targets: Targets, *, by_pixels: bool = False) -> tuple[Any, Targets, np.ndarray]:
    """Merge rows of equal content and target, and put them into an order that depends on nothing else.

    So a row that is repeated is the same as a row with more weight, to the last bit.

    Parameters
    ----------
    rows : sequence of rows
        With a content hash ``digest`` each.
    targets : Targets
        One per row.
    by_pixels : bool, default=False
        Whether images are told apart by what they show, and not by the bytes of their files: then the order is the same
        for files and arrays, but every image is decoded.

    Returns
    -------
    rows, targets
        One row per distinct pair of content and target; weights are added.
    group : ndarray of int, shape (n,)
        For each row given, which of the rows returned it is part of.
    """

    def digests(index: int) -> tuple[bytes, bytes]:
        row = rows[index]
        return row.pixel_digest() if by_pixels and hasattr(row, "pixel_digest") else row.digest, row.digest

    contents, files = zip(*map_rows(digests, rows, range(len(targets))), strict=True)
    order = np.array(sorted(range(len(files)), key=files.__getitem__))  # of files that show the same, one is chosen
    keys = [contents[index] + targets.values[index].tobytes() for index in order]
    _, first, group = np.unique(np.array(keys, dtype=object), return_index=True, return_inverse=True)
    group = group[np.argsort(order)]
    weight = np.bincount(group, weights=targets.weight)
    first = order[first]
    return rows.take(first), Targets(targets.values[first], weight, targets.class_weight), group


def describe_rows(rows, targets: Targets) -> dict[str, Any]:
    """Say what a model was trained on without keeping it: how many rows, and a hash of their contents and targets.

    Parameters
    ----------
    rows, targets
        As :func:`merge_duplicates` returns them; their order has no influence.

    Returns
    -------
    description : dict
        ``n_rows``, how many distinct ones, and ``sha256``.
    """
    digest = hashlib.sha256()
    contents = map_rows(lambda index: rows[index].digest, rows, range(len(targets)))
    columns = contents, targets.values, targets.weight
    for entry in sorted(
        content + value.tobytes() + weight.tobytes() for content, value, weight in zip(*columns, strict=True)
    ):
        digest.update(entry)
    return {"n_rows": len(targets), "sha256": digest.hexdigest()}


class EvenBatches(Sampler):
    """Split the rows into batches whose sizes differ by one at most: no small rest to upset batch normalisation.

    Parameters
    ----------
    n : int
        Number of rows.
    batch_size : int
        Upper bound of a batch's size.
    generator : torch.Generator, default=None
        Shuffles the rows anew in each epoch; None keeps their order.
    part : (int, int), default=(0, 1)
        Which part of each batch to give, of how many.

    Raises
    ------
    ValueError
        If batches have fewer rows than parts.
    """

    def __init__(
        self, n: int, batch_size: int, generator: torch.Generator | None = None, part: tuple[int, int] = (0, 1)
    ):
        self.n = n
        self.batch_size = batch_size
        self.generator = generator
        self.part = part
        if n // len(self) < part[1]:
            raise ValueError(
                f"{part[1]} processes cannot share batches of {n // len(self)} rows: give a larger batch_size, or "
                "train in fewer processes."
            )

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.n) if self.generator is None else torch.randperm(self.n, generator=self.generator)
        for batch in torch.tensor_split(order, len(self)):
            yield batch[self.part[0] :: self.part[1]].tolist()


def batches(
    dataset: TrainingData, batch_size: int, generator: torch.Generator | None = None, part: tuple[int, int] = (0, 1)
) -> DataLoader:
    """Return an iterable of batches, or of a part of each, for skorch's ``iterator_train`` and ``iterator_valid``."""
    sampler = EvenBatches(len(dataset), batch_size, generator, part)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=_as_it_is, generator=generator)


def _as_it_is(batch):
    return batch
