"""Activations at the end of a frozen prefix, kept for the epochs: in memory, or in a file that leaves no trace."""

import math
import shutil
import tempfile

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import nn

from sktl.strategies import Strategy
from sktl.training.callbacks import Settling
from sktl.training.data import RAM_BUDGET, TrainingData
from sktl.training.lanes import n_parts_for
from sktl.training.network import Network
from sktl.training.parts import Parts
from sktl.training.prefix import Activations, FrozenPrefix, find_prefix

_DISK_SHARE = 0.5  # of the free space of the folder for temporary files


def prefix_once(
    net, n_epochs: int, data: TrainingData, valid: TrainingData | None = None, *, for_later: bool = False
) -> list[tuple[str, Callback]]:
    """Return the callback that runs the frozen prefix once, by name, if images come more than once; else nothing.

    Parameters
    ----------
    net : TransferNet
        That trains, or tries to.
    n_epochs : int
        How often it goes through the rows.
    data : TrainingData
        Rows to learn from; perhaps with activations left over from an earlier net.
    valid : TrainingData, default=None
        Rows to measure on.
    for_later : bool, default=False
        Whether to leave the activations to a net that trains on the same rows after this one.
    """
    sees_images = type(net.strategy).penalty is not Strategy.penalty  # and perhaps runs the network on them
    if not net.cache_prefix or net.mixing is not None or data.n_kept is None or sees_images:
        return []
    if n_epochs > data.n_kept or data.left_over is not None:
        return [("prefix", PrefixOnce([data] if valid is None else [data, valid], for_later))]
    return []


class PrefixOnce(Settling):
    """Run the frozen prefix once per image or variant of it; find it anew when the strategy changes what is trained.

    Parameters
    ----------
    datasets : sequence of TrainingData
        All that the network sees in training.
    for_later : bool, default=False
        Whether the activations outlast training, as what is left over.
    """

    def __init__(self, datasets, for_later: bool = False):
        self.datasets = datasets
        self.for_later = for_later

    def on_train_begin(self, net, **kwargs):
        self.trained_ = None

    def on_epoch_begin(self, net, **kwargs):
        trained = [parameter.requires_grad for parameter in net.module_.parameters()]
        if trained != self.trained_:
            self.trained_ = trained
            net.prefix_ = self._find(net)
            if net.prefix_ is None or not self._make_room(net.prefix_, net.module_.backbone):
                self._forget(net)
        if net.prefix_ is not None:
            self._fill(net)
        net.history.record("frozen_prefix", "" if net.prefix_ is None else net.prefix_.cut.name or "backbone")

    def settle(self, net):
        left_over = [data.activations if self.for_later else None for data in self.datasets]
        self._forget(net)
        for data, activations in zip(self.datasets, left_over, strict=True):
            data.left_over = activations
        self.datasets = ()

    def _forget(self, net) -> None:
        net.prefix_ = None
        for data in self.datasets:
            data.activations = data.left_over = None

    def _find(self, net) -> FrozenPrefix | None:
        images = self.datasets[0].first_images()
        with net.in_precision():
            prefix = find_prefix(net.module_, images.to(net.device))
        # An average lags behind what was trained before it was frozen.
        same = prefix is not None and prefix.is_same_in(net.module_.backbone, net.evaluated_network.backbone)
        return prefix if same else None

    def _make_room(self, prefix: FrozenPrefix, backbone: nn.Module) -> bool:
        """Keep the activations that are of this prefix, and reserve room for others; tell whether there is any."""
        for data in self.datasets:
            found = [each for each in (data.activations, data.left_over) if each and each.are_of(prefix, backbone)]
            data.activations, data.left_over = found[0] if found else None, None
        for data in self.datasets:
            if data.activations is not None:
                data.activations.backbone = backbone  # so that an earlier net's is not kept in memory
            else:
                values = reserve((data.n_kept * len(data), *prefix.cut.shape), prefix.cut.dtype)
                if values is None:
                    return False
                data.activations = Activations(values, prefix, backbone)
        return True

    def _fill(self, net) -> None:
        """Compute what this epoch reads and no earlier one did."""
        for data in self.datasets:
            number = data.epoch % data.n_kept
            if number not in data.activations.filled:
                _fill(data.activations.values, net, net.prefix_, data, number)
                data.activations.filled.add(number)


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
