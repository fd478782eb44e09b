"""Activations at the end of a frozen prefix, kept for the epochs: in memory, or in a file that leaves no trace."""

import math
import shutil
import tempfile

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import nn

from sktl.training.callbacks import Settling
from sktl.training.data import RAM_BUDGET, TrainingData
from sktl.training.lanes import n_parts_for
from sktl.training.network import Network
from sktl.training.parts import Parts
from sktl.training.prefix import FrozenPrefix, find_prefix

_DISK_SHARE = 0.5  # of the free space of the folder for temporary files


def prefix_once(net, data: TrainingData, valid: TrainingData | None = None) -> list[tuple[str, Callback]]:
    """Return the callback that runs the frozen prefix once, by name, if images come more than once; else nothing.

    Parameters
    ----------
    net : TransferNet
        With the number of epochs that it is to train.
    data : TrainingData
        Rows to learn from.
    valid : TrainingData, default=None
        Rows to measure on.
    """
    if net.cache_prefix and net.mixing is None and data.n_kept is not None and net.max_epochs > data.n_kept:
        return [("prefix", PrefixOnce([data] if valid is None else [data, valid]))]
    return []


class PrefixOnce(Settling):
    """Run the frozen prefix once per image or variant of it; find it anew when the strategy changes what is trained.

    Parameters
    ----------
    datasets : sequence of TrainingData
        All that the network sees in training.
    """

    def __init__(self, datasets):
        self.datasets = datasets

    def on_train_begin(self, net, **kwargs):
        self.trained_ = None

    def on_epoch_begin(self, net, **kwargs):
        trained = [parameter.requires_grad for parameter in net.module_.parameters()]
        if trained != self.trained_:
            self.trained_ = trained
            self._forget(net)
            self._find(net)
        if net.prefix_ is not None:
            self._fill(net)
        net.history.record("frozen_prefix", "" if net.prefix_ is None else net.prefix_.cut.name or "backbone")

    def settle(self, net):
        self._forget(net)
        self.datasets = ()

    def _forget(self, net) -> None:
        net.prefix_ = None
        self.filled_ = set()
        for data in self.datasets:
            data.activations = None

    def _find(self, net) -> None:
        images = self.datasets[0].inputs(torch.arange(min(2, len(self.datasets[0]))), 0)
        with net.in_precision():
            prefix = find_prefix(net.module_, images.to(net.device))
        if prefix is None or not _holds_for(prefix, net.module_.backbone, net.evaluated_network.backbone):
            return
        shape, dtype = prefix.cut.shape, prefix.cut.dtype
        kept = [reserve((data.n_kept * len(data), *shape), dtype) for data in self.datasets]
        if any(activations is None for activations in kept):
            return
        for data, activations in zip(self.datasets, kept, strict=True):
            data.activations = activations
        net.prefix_ = prefix

    def _fill(self, net) -> None:
        """Compute what this epoch reads and no earlier one did."""
        for place, data in enumerate(self.datasets):
            number = data.epoch % data.n_kept
            if (place, number) not in self.filled_:
                _fill(data.activations, net, net.prefix_, data, number)
                self.filled_.add((place, number))


def reserve(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
    """Return room for activations: in memory, above a budget in a temporary file, or None if there is none.

    Parameters
    ----------
    shape : tuple of int
        Of all activations.
    dtype : torch.dtype
        Of one value.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes <= RAM_BUDGET:
        return torch.empty(shape, dtype=dtype)
    if n_bytes > _DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free:
        return None
    with tempfile.TemporaryFile(prefix="sktl-activations-") as file:  # the mapping keeps it; its name is gone already
        mapped = np.memmap(file, dtype=np.uint8, mode="w+", shape=(n_bytes,))
    return torch.from_numpy(mapped).view(dtype).view(shape)


def _holds_for(prefix: FrozenPrefix, trained: nn.Module, evaluated: nn.Module) -> bool:
    """Tell whether the prefix is the same in both; an average lags behind what was trained before it was frozen."""
    return all(
        all(map(torch.equal, part.state_dict().values(), evaluated.get_submodule(name).state_dict().values()))
        for name, part in ((call.name, trained.get_submodule(call.name)) for call in prefix.calls)
    )


def _fill(activations: torch.Tensor, net, prefix: FrozenPrefix, data: TrainingData, number: int) -> None:
    """Run the prefix on one variant of all rows; where memory runs out, on fewer rows at a time."""

    def run(network: Network, images: torch.Tensor) -> torch.Tensor:
        with net.in_precision():
            return prefix.run(network.backbone, network.normalise(images.to(net.device))).cpu()

    def attempt(parts: list[slice]) -> None:
        chunks = torch.arange(len(data)).split(max(part.stop - part.start for part in parts))
        images = (data.inputs(rows, number) for rows in chunks)
        for rows, part in zip(chunks, net.map_copies(run, images), strict=True):
            activations[number * len(data) + rows] = part

    n_parts = n_parts_for((net.batch_size, *prefix.input_shape))  # as in training without a cache
    Parts(n_parts, torch.device(net.device)).run(net.batch_size, attempt)
