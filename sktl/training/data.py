"""Rows and targets as batches for the training loop."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sktl.exceptions import BadRow
from sktl.inputs import RowError, raise_bad_rows

RAM_BUDGET = 2**31
DECODING_THREADS = 4


@dataclass(frozen=True)
class Targets:
    """What the network should say, and how much each row counts.

    Attributes
    ----------
    values : ndarray of shape (n,) or (n, n_outputs)
        Class indices or numbers.
    weight : ndarray of float, shape (n,)
        Positive sample weights.
    """

    values: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def take(self, indices: np.ndarray) -> "Targets":
        """Return the targets of some rows."""
        return Targets(self.values[indices], self.weight[indices])


class TrainingData(Dataset):
    """Rows made ready for the network once, and kept in memory as 8-bit images where they fit a budget.

    Parameters
    ----------
    rows : sequence of rows
        Anything with ``label(i)`` whose items have ``pixels()``, or ``model_input()`` if they need no preprocessing.
    targets : Targets
        One per row.
    preprocess : callable
        Brings pixels of shape (height, width, 3) to the backbone's input size.

    Raises
    ------
    InputError
        If rows cannot be read; names them all.
    """

    def __init__(self, rows, targets: Targets, preprocess: Callable[[np.ndarray], np.ndarray]):
        self.rows = rows
        self.targets = targets
        self.preprocess = preprocess
        self._values = torch.as_tensor(targets.values)
        self._weight = torch.as_tensor(targets.weight, dtype=torch.float32)
        self._images = self._load_all() if self._fits_in_memory() else None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        index = torch.as_tensor(indices)
        images = self._images[index] if self._images is not None else torch.from_numpy(self._load(indices))
        return images, {"target": self._values[index], "weight": self._weight[index]}

    def _fits_in_memory(self) -> bool:
        return self._prepare_row(0).nbytes * len(self) <= RAM_BUDGET

    def _load_all(self) -> torch.Tensor:
        return torch.from_numpy(self._load(range(len(self))))

    def _load(self, indices) -> np.ndarray:
        with ThreadPoolExecutor(DECODING_THREADS) as threads:
            prepared = list(threads.map(self._try_row, indices))
        bad = [row for row in prepared if isinstance(row, BadRow)]
        if bad:
            raise_bad_rows(bad)
        return np.stack(prepared)

    def _try_row(self, index: int) -> np.ndarray | BadRow:
        try:
            return self._prepare_row(index)
        except RowError as error:
            return BadRow(index, self.rows.label(index), str(error))

    def _prepare_row(self, index: int) -> np.ndarray:
        row = self.rows[index]
        return row.model_input() if hasattr(row, "model_input") else self.preprocess(row.pixels())


class EvenBatches(Sampler):
    """Split the rows into batches whose sizes differ by one at most, so that none is too small for batch normalisation.

    Parameters
    ----------
    n : int
        Number of rows.
    batch_size : int
        Upper bound of a batch's size.
    generator : torch.Generator, default=None
        Shuffles the rows anew in each epoch; None keeps their order.
    """

    def __init__(self, n: int, batch_size: int, generator: torch.Generator | None = None):
        self.n = n
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.n) if self.generator is None else torch.randperm(self.n, generator=self.generator)
        for batch in torch.tensor_split(order, len(self)):
            yield batch.tolist()


def batches(dataset: TrainingData, batch_size: int, generator: torch.Generator | None = None) -> DataLoader:
    """Return an iterable of batches, as skorch's ``iterator_train`` and ``iterator_valid`` want it."""
    sampler = EvenBatches(len(dataset), batch_size, generator)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=_as_it_is, generator=generator)


def _as_it_is(batch):
    return batch
