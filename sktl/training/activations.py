"""Activations at the end of a frozen prefix, kept for the epochs: in memory, or in a file that leaves no trace."""

import math
import shutil
import tempfile

import numpy as np
import torch
from skorch.callbacks import Callback

from sktl.training.data import TrainingData
from sktl.training.lanes import n_parts_for
from sktl.training.network import Network
from sktl.training.prefix import FrozenPrefix, find_prefix

RAM_BUDGET = 2**31
_DISK_SHARE = 0.5  # of the free space of the folder for temporary files


class PrefixOnce(Callback):
    """Run the frozen prefix once per image; find it anew whenever the strategy changes what is trained.

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
            self._compute(net)
        net.history.record("frozen_prefix", "" if net.prefix_ is None else net.prefix_.cut.name or "backbone")

    def on_train_end(self, net, **kwargs):
        self._forget(net)
        self.datasets = ()

    def _forget(self, net) -> None:
        net.prefix_ = None
        for data in self.datasets:
            data.activations = None

    def _compute(self, net) -> None:
        images = self.datasets[0].inputs(torch.arange(min(2, len(self.datasets[0]))), 0)
        with net.in_precision():
            prefix = find_prefix(net.module_, images.to(net.device))
        if prefix is None:
            return
        shape, dtype = prefix.cut.shape, prefix.cut.dtype
        kept = [reserve((data.n_kept * len(data), *shape), dtype) for data in self.datasets]
        if any(activations is None for activations in kept):
            return
        for data, activations in zip(self.datasets, kept, strict=True):
            _fill(activations, net, prefix, data)
        for data, activations in zip(self.datasets, kept, strict=True):
            data.activations = activations
        net.prefix_ = prefix


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


def _fill(activations: torch.Tensor, net, prefix: FrozenPrefix, data: TrainingData) -> None:
    def run(network: Network, images: torch.Tensor) -> torch.Tensor:
        with net.in_precision():
            return prefix.run(network.backbone, network.normalise(images.to(net.device))).cpu()

    n_rows = -(-net.batch_size // n_parts_for((net.batch_size, *prefix.input_shape)))  # as in training without a cache
    chunks = [rows for _ in range(data.n_kept) for rows in torch.arange(len(data)).split(n_rows)]
    n_chunks = len(chunks) // data.n_kept
    images = (data.inputs(rows, index // n_chunks) for index, rows in enumerate(chunks))
    for index, part in enumerate(net.map_copies(run, images)):
        activations[index // n_chunks * len(data) + chunks[index]] = part
