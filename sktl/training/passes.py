"""Training on rows that come in parts: one pass over each, by one optimizer."""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from skorch.callbacks import GradientNormClipping
from torch import nn

from sktl._random import private_torch_rng
from sktl.training.data import TrainingData
from sktl.training.net import TransferNet
from sktl.training.network import Network

Moments = dict[str, dict[str, Any]]


class Passes:
    """A network in training that is given rows call by call.

    The learning rate is constant, since nobody knows how many calls will come; gradients are clipped as in
    :func:`~sktl.training.train`. Between calls the network is on the CPU.

    Parameters
    ----------
    net : TransferNet
        Not initialized; its device is where training runs.
    seed : int
        Decides whatever is random, in each pass anew.
    n_passes : int, default=0
        How many there were before.
    moments : dict of str to dict, default=None
        What the optimizer knew of each parameter, by its name; left aside where the names or shapes are others.

    Attributes
    ----------
    usable : bool
        False after a pass that failed: the network may be trained by half of it.
    """

    def __init__(self, net: TransferNet, seed: int, n_passes: int = 0, moments: Moments | None = None):
        self.device = torch.device(net.device)
        self.seed = seed
        self.usable = True
        self._generator = torch.Generator()
        net.set_params(
            iterator_train__generator=self._generator,
            callbacks=[*net.callbacks, ("clip", GradientNormClipping(1.0))],
        )
        self.net = net
        self._n_passes = n_passes
        self._moments = moments

    @property
    def network(self) -> Network:
        """The network in training."""
        return self.net.module_ if self.net.initialized_ else self.net.module

    def run(self, data: TrainingData) -> dict[str, Any]:
        """Train on each row once.

        Parameters
        ----------
        data : TrainingData
            The rows.

        Returns
        -------
        entry : dict
            Loss, seconds and the head's learning rate, for the history.
        """
        self.usable = False
        data.epoch = self._n_passes
        seed = int(np.random.SeedSequence([self.seed, self._n_passes]).generate_state(1)[0])
        with private_torch_rng(seed, self.device):
            if not self.net.initialized_:
                self._begin()
            self._move(self.device)
            self._generator.manual_seed(seed)
            self.net.max_epochs = self._n_passes + 1  # in all
            self.net.partial_fit(data, None)
        self._move(torch.device("cpu"))
        self.network.eval()
        self._check_numbers()
        epoch = self.net.history[-1]
        epoch["batches"] = []
        self._n_passes += 1
        self.usable = True
        figures = {name: float(epoch[name]) for name in ("train_loss", "dur")}
        return {"phase": "pass", **figures, "lr": self.net.head_rate}

    def state(self, lasting: Collection[str] = ()) -> dict[str, Any]:
        """Return the arguments, net aside, with which the passes go on elsewhere; arrays and numbers.

        Parameters
        ----------
        lasting : collection of str, default=()
            Names of the parameters that will be there as they are: of others, what the optimizer knows says nothing.
        """
        if not lasting:
            return {"seed": self.seed, "n_passes": self._n_passes}
        state = self.net.optimizer_.state
        moments = {
            name: {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in known.items()}
            for name, parameter in self.network.named_parameters()
            if name in lasting and (known := state.get(parameter))
        }
        return {"seed": self.seed, "n_passes": self._n_passes, "moments": moments}

    def _begin(self) -> None:
        self.net.initialize()
        for _ in range(self._n_passes):
            self.net.history.new_epoch()  # strategies count epochs
        parameters = dict(self.network.named_parameters())
        for name, known in (self._moments or {}).items():
            shapes = {value.shape for value in known.values() if isinstance(value, np.ndarray) and value.ndim}
            if name in parameters and shapes <= {tuple(parameters[name].shape)}:
                self.net.optimizer_.state[parameters[name]] = {
                    key: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
                    for key, value in known.items()
                }
        self._moments = None

    def _move(self, device: torch.device) -> None:
        """Bring network and optimizer to a device."""
        self.net.device = device
        self.network.to(device)
        self.net.criterion_.to(device)
        for known in self.net.optimizer_.state.values():
            for key, value in known.items():
                if isinstance(value, torch.Tensor) and value.ndim:  # counts of steps stay where the optimizer has them
                    known[key] = value.to(device)

    def _check_numbers(self) -> None:
        if not all(torch.isfinite(parameter).all() for parameter in self.network.parameters()):
            raise FloatingPointError("Training gave weights that are no numbers. Try a smaller learning_rate.")


class EmbeddingRows:
    """Embeddings as rows of a data set.

    Parameters
    ----------
    embeddings : ndarray of shape (n, width)
        One row each.
    """

    def __init__(self, embeddings: np.ndarray):
        self._embeddings = embeddings

    def __len__(self) -> int:
        return len(self._embeddings)

    def __getitem__(self, index: int) -> "EmbeddingRow":
        return EmbeddingRow(self._embeddings[index])


class EmbeddingRow:
    """One embedding, as the input of a network of a head alone."""

    def __init__(self, values: np.ndarray):
        self._values = values

    def model_input(self) -> np.ndarray:
        """Return the embedding, of shape (1, width): rows of one dimension are texts."""
        return self._values[None]


def head_alone(network: Network) -> Network:
    """Return a network of a copy of the head, which takes embeddings in place of images."""
    alone = Network(nn.Flatten(), network.head, network.mean.flatten().tolist(), network.std.flatten().tolist())
    alone.dropout = network.dropout
    alone.requires_grad_(True)
    return alone.eval()
