"""The contract between a way of transfer and the training loop."""

from typing import Any, ClassVar, Protocol

import torch
from sklearn.base import BaseEstimator
from torch import nn


class TrainableNetwork(Protocol):
    """What a strategy sees of the network that it prepares."""

    backbone: nn.Module
    head: nn.Module
    layer_groups: list[list[str]]


class Strategy(BaseEstimator):
    """One way to reuse a pretrained network.

    A strategy says what is trained, how fast, and from where. It is a small object of plain parameters, so that
    ``strategy__<parameter>`` can be searched; all methods are optional. It works on the network, never on the
    estimator, and on a copy of its own for each fit.

    Attributes
    ----------
    trains_backbone : bool
        False if the backbone keeps its weights: then embeddings are computed once, the head is fitted on them, and none
        of the methods is called.
    starts_pretrained : bool
        False if training starts from random weights.
    fits_head_first : bool
        True if the head is first fitted to convergence on the frozen backbone's embeddings.
    updates_batch_norm : bool
        True if the running statistics of batch normalisation follow the new data; False keeps the pretrained ones.
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
    updates_batch_norm: ClassVar[bool] = False
    C: float = 10.0
    learning_rate: ClassVar[float] = 1e-3

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
            With keys ``params`` (a list of named parameters) and ``lr``, as torch optimizers take them.
        """
        return [
            {"params": list(network.backbone.named_parameters(prefix="backbone")), "lr": lr},
            {"params": list(network.head.named_parameters(prefix="head")), "lr": lr},
        ]

    def on_epoch_begin(self, network: TrainableNetwork, epoch: int) -> None:
        """Change what is trained as training goes on.

        Parameters
        ----------
        network : Network
            The network in training.
        epoch : int
            Starts at 0.
        """

    def penalty(self, network: TrainableNetwork, batch: torch.Tensor, output: torch.Tensor) -> torch.Tensor | float:
        """Add a term to the loss of a batch.

        Parameters
        ----------
        network : Network
            The network in training.
        batch : tensor of shape (n, ...)
            The batch's images.
        output : tensor of shape (n, n_outputs)
            The head's output for them.

        Returns
        -------
        penalty : scalar tensor or float
            Added to the weighted mean loss.
        """
        return 0.0

    def finish(self, network: TrainableNetwork) -> None:
        """Change the trained network before it is used.

        Parameters
        ----------
        network : Network
            The trained network, in eval mode.
        """
