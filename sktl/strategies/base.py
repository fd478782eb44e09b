"""The contract between a way of transfer and the training loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn

from sktl._params import with_defaults


class TrainableNetwork(Protocol):
    """What a strategy sees of the network that it prepares.

    Attributes
    ----------
    backbone : nn.Module
        Maps normalised images to embeddings.
    head : nn.Module
        Maps embeddings to the new task's outputs.
    original_head : nn.Module or None
        Maps embeddings to the old task's outputs; only there where the strategy asks for it.
    layer_groups : list of list of str
        Names of the backbone's parameters by depth; the first group is next to the input.
    """

    backbone: nn.Module
    head: nn.Module
    original_head: nn.Module | None
    layer_groups: list[list[str]]

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Turn 8-bit images into the backbone's input."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of one training step, as a strategy's penalty sees them.

    Parameters
    ----------
    images : tensor of shape (n, ...)
        What the network was given.
    rows : tensor of int, shape (n,)
        Positions among the training rows, in the order of :attr:`Start.embeddings`.
    weight : tensor of shape (n,)
        How much each row counts; the mean over all training rows is 1.
    embeddings : tensor of shape (n, width)
        The backbone's output in this step, before the head's dropout.
    drawn : tuple of tensor, default=()
        What :meth:`Strategy.draw` gave for these rows.
    """

    images: torch.Tensor
    rows: torch.Tensor
    weight: torch.Tensor
    embeddings: torch.Tensor
    drawn: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class Start:
    """What a strategy may look at once, before the first step of training.

    Parameters
    ----------
    embeddings : ndarray of shape (n, width) or None
        Those of the training rows by the backbone as it was given; None unless ``fits_head_first``.
    initial_weights : dict of str to tensor, or None
        The backbone's parameters as this training finds them, on the CPU, shared and read-only; None unless
        ``needs_initial_weights``.
    draw_original : callable or None
        Takes a number and draws that many rows of the old task at random, if the strategy brings them; returns their
        images and class indices.
    rows_per_class : float or None
        Number of different training rows, divided by the number of classes if each row has one class. None if training
        continues from an earlier call, or rows come in parts.
    pretrained_weights : dict of str to tensor, or None
        The backbone's parameters as the estimator's ``backbone`` and ``weights`` give them, even if training continues
        from an earlier call and so starts from other ones; None unless ``needs_pretrained_weights``.
    """

    embeddings: np.ndarray | None = None
    initial_weights: dict[str, torch.Tensor] | None = None
    draw_original: Callable[[int], tuple[torch.Tensor, torch.Tensor]] | None = None
    rows_per_class: float | None = None
    pretrained_weights: dict[str, torch.Tensor] | None = None


class Strategy(BaseEstimator):
    """One way to reuse a pretrained network.

    A strategy says what is trained, how fast, and from where. It is a small object of plain parameters, so that
    ``strategy__<parameter>`` can be searched; all methods are optional. It works on the network, never on the
    estimator, and on a copy of its own for each fit.

    Attributes
    ----------
    trains_backbone : bool
        False if the backbone keeps its weights: embeddings are computed once then, the head is fitted on them, and none
        of the methods is called.
    starts_pretrained : bool
        False if training starts from random weights.
    fits_head_first : bool
        True if the head is first fitted to convergence on the frozen backbone's embeddings.
    needs_original_head : bool
        True if the head of the old task is part of the network and trained along, as ``network.original_head``; a
        backbone that brings none is an error then.
    brings_original_data : bool
        True if the strategy's ``X`` and ``y`` are rows of the old task; :attr:`Start.draw_original` draws from them.
    goes_back : bool
        True if :meth:`finish` takes back part of what was learnt, so that ``partial_fit`` cannot train call by call.
    needs_initial_weights : bool
        True if :attr:`Start.initial_weights` shall hold the backbone's weights as training finds them.
    needs_pretrained_weights : bool
        True if :attr:`Start.pretrained_weights` shall hold those that the backbone brought. Training that continues
        from an earlier call loads them again then.
    updates_batch_norm : bool
        True if the running statistics of batch normalisation follow the new data; False keeps the pretrained ones.
    splits_penalty : bool
        True if the penalty depends on nothing but its arguments and what was recorded before training: it may then be
        computed for parts of a batch at the same time. Otherwise a training step on a CPU uses one core.
    C : float
        Inverse strength of the head's L2 penalty where it is fitted first.
    learning_rate : float
        Learning rate of the head where the estimator's ``learning_rate`` is None.

    See Also
    --------
    sktl.FineTuneClassifier : Takes a strategy by name or as an object.

    Examples
    --------
    A strategy that trains biases alone:

    >>> from sktl.strategies import Strategy
    >>> class BiasesOnly(Strategy):
    ...     def prepare(self, network):
    ...         for name, parameter in network.backbone.named_parameters():
    ...             parameter.requires_grad_(name.endswith("bias"))
    >>> BiasesOnly()
    BiasesOnly()
    """

    trains_backbone: ClassVar[bool] = True
    starts_pretrained: ClassVar[bool] = True
    fits_head_first: ClassVar[bool] = False
    needs_original_head: ClassVar[bool] = False
    brings_original_data: ClassVar[bool] = False
    needs_initial_weights: ClassVar[bool] = False
    needs_pretrained_weights: ClassVar[bool] = False
    goes_back: bool = False
    updates_batch_norm: ClassVar[bool] = False
    splits_penalty: ClassVar[bool] = False
    C: float = 10.0
    learning_rate: ClassVar[float] = 1e-3

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(with_defaults(type(self), state))

    def prepare(self, network: TrainableNetwork) -> None:
        """Choose what is trained, by ``requires_grad``.

        Parameters
        ----------
        network : Network
            With ``backbone``, ``head`` and ``layer_groups``; everything is trainable at the call.
        """

    def param_groups(self, network: TrainableNetwork, lr: float) -> list[dict[str, Any]]:
        """Give each parameter its learning rate.

        Parameters
        ----------
        network : Network
            The prepared network.
        lr : float
            The head's learning rate.

        Returns
        -------
        groups : list of dict
            With keys ``params`` (a list of named parameters) and ``lr``, as torch optimizers take them; the key
            ``weight_decay`` overrides the estimator's.
        """
        return layerwise_groups(network, lr)

    def on_train_begin(self, network: TrainableNetwork, start: Start) -> None:
        """Record what training starts from; called once, after the head's first fit.

        Parameters
        ----------
        network : Network
            On the CPU, in eval mode.
        start : Start
            What can be recorded.
        """

    def on_epoch_begin(self, network: TrainableNetwork, epoch: int) -> None:
        """Change what is trained as training goes on.

        Parameters
        ----------
        network : Network
            The network in training.
        epoch : int
            Starts at 0.
        """

    def draw(self, n: int) -> tuple[torch.Tensor, ...]:
        """Draw what the penalty of a step needs besides its batch; called once per step, with torch's generator seeded.

        Parameters
        ----------
        n : int
            Rows of the batch.

        Returns
        -------
        drawn : tuple of tensor of shape (n, ...)
            Given to the penalty as :attr:`Batch.drawn`; if it sees a part of the batch, the same part of these.
        """
        return ()

    def penalty(self, network: TrainableNetwork, batch: Batch, output: torch.Tensor) -> torch.Tensor | float:
        """Add a term to the loss of a batch.

        Since this method may use the images, the frozen layers of a strategy that has it run in every epoch, not once.

        Parameters
        ----------
        network : Network
            The network in training.
        batch : Batch
            The rows of the step: images, positions, weights and embeddings.
        output : tensor of shape (n, n_outputs)
            The head's output for them.

        Returns
        -------
        penalty : scalar tensor or float
            Added to the weighted mean loss.
        """
        return 0.0

    def keep(self, network: TrainableNetwork) -> dict[str, torch.Tensor]:
        """Return what :meth:`finish` removes and ``partial_fit`` needs to continue from the finished network.

        Called when the network in training is given up and only a finished copy remains, which predicts: when an
        estimator with ``warm_start`` is pickled, and when parameters have changed between two calls.

        Parameters
        ----------
        network : Network
            The network in training, on the CPU; left as it is.

        Returns
        -------
        kept : dict of str to tensor
            Parameters of the network, by name; the optimizer's state for them is kept too. It is part of pickles, so it
            should be small.
        """
        return {}

    def take_up(self, network: TrainableNetwork, kept: dict[str, torch.Tensor]) -> None:
        """Put back what :meth:`keep` returned.

        Parameters
        ----------
        network : Network
            The finished network, prepared anew.
        kept : dict of str to tensor
            Perhaps of a strategy with other parameters: what does not fit is to be ignored.
        """

    def finish(self, network: TrainableNetwork) -> None:
        """Change the trained network before it is used, and release what was recorded.

        Parameters
        ----------
        network : Network
            The trained network, on the CPU, in eval mode.
        """


def layerwise_groups(
    network: TrainableNetwork, lr: float, backbone_scale: float = 1.0, decay: float | None = None
) -> list[dict[str, Any]]:
    """Return parameter groups whose learning rate falls with the distance from the output.

    Parameters
    ----------
    network : Network
        The prepared network.
    lr : float
        The head's learning rate.
    backbone_scale : float, default=1.0
        The backbone's learning rate, as a fraction of the head's.
    decay : float, default=None
        Factor from each of the backbone's layer groups to the next one below; the group next to the head has it once.
        None gives the whole backbone one rate.

    Returns
    -------
    groups : list of dict
        The backbone's from the input on, then the head's, then the original head's where there is one.
    """
    parameters = dict(network.backbone.named_parameters(prefix="backbone"))
    if decay is None:
        layers = [list(parameters)]
    else:
        layers = [[f"backbone.{name}" for name in group] for group in network.layer_groups]
    groups = []
    for depth, names in enumerate(layers):
        rate = lr * backbone_scale * (1.0 if decay is None else decay ** (len(layers) - depth))
        groups.append({"params": [(name, parameters[name]) for name in names if name in parameters], "lr": rate})
    groups.append({"params": list(network.head.named_parameters(prefix="head")), "lr": lr})
    original_head = getattr(network, "original_head", None)
    if original_head is not None:
        named = list(original_head.named_parameters(prefix="original_head"))
        groups.append({"params": named, "lr": lr * backbone_scale})
    return groups
