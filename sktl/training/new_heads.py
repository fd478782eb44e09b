"""Heads other than a linear layer: made, checked, and fitted on embeddings by gradient steps."""

import copy
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from sktl._random import private_torch_rng
from sktl._spread import scale_of_embeddings
from sktl.training.data import Targets
from sktl.training.losses import per_row

N_HIDDEN = 256
_BATCH_SIZE = 32
_STEPS = 2000
_EPOCHS = (20, 200)
_LEARNING_RATE = 1e-3


class MLPHead(nn.Sequential):
    """Two linear layers with a rectifier between them.

    Parameters
    ----------
    width : int
        Of the embeddings.
    n_outputs : int
        Width of the output.
    n_hidden : int, default=256
        Width between the layers.
    """

    def __init__(self, width: int, n_outputs: int, n_hidden: int = N_HIDDEN):
        super().__init__(nn.Linear(width, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_outputs))


def zero_linear(width: int, n_outputs: int) -> nn.Linear:
    """Return a linear layer of zeros, without drawing random numbers: the first gradient reaches it alone."""
    head = nn.utils.skip_init(nn.Linear, width, n_outputs, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def make_head(head: str | nn.Module, width: int, n_outputs: int, seed: int) -> nn.Module:
    """Return a new head.

    Parameters
    ----------
    head : {"linear", "mlp"} or nn.Module
        A module is copied, with its weights.
    width : int
        Of the embeddings.
    n_outputs : int
        Width of the output.
    seed : int
        For a random start.

    Raises
    ------
    ValueError
        If a module does not take embeddings of that width, its output has another width, or it has lazy layers that
        have not been run.
    """
    if head == "linear":
        return zero_linear(width, n_outputs)
    if head == "mlp":
        with private_torch_rng(seed):
            return MLPHead(width, n_outputs).float()
    if any(is_lazy(parameter) for parameter in head.parameters()):
        raise ValueError(
            "The module given as head= has lazy layers without weights: call it once, before fit, on zeros of shape "
            f"(2, {width}), the width of the embeddings."
        )
    module = copy.deepcopy(head).cpu().float().requires_grad_(True).eval()
    try:
        with torch.inference_mode():
            shape = tuple(module(torch.zeros(2, width, dtype=torch.float32)).shape)
    except Exception as error:  # the head is the user's own
        raise ValueError(f"The module given as head= cannot be run on embeddings of width {width}: {error}") from error
    if shape != (2, n_outputs):
        raise ValueError(
            f"The module given as head= turns 2 embeddings into an output of shape {shape}; expected (2, {n_outputs})."
        )
    return module


def train_head(
    head: nn.Module,
    embeddings: np.ndarray,
    targets: Targets,
    criterion: nn.Module,
    *,
    dropout: float,
    weight_decay: float,
    seed: int,
) -> float:
    """Fit a head on embeddings by gradient steps (AdamW, learning rate in one cosine); its weights are the start.

    The embeddings are standardised for a :class:`MLPHead`, and the scaling is folded into its first layer; another
    head is given them as they are.

    Parameters
    ----------
    head : nn.Module
        Changed in place.
    embeddings : ndarray of shape (n, width)
        One row per image.
    targets : Targets
        What the head should say.
    criterion : nn.Module
        Takes outputs and targets; without a reduction.
    dropout : float
        Share of the embedding's values that a step does not see.
    weight_decay : float
        Of matrices.
    seed : int
        For the order of rows and dropout.

    Returns
    -------
    loss : float
        Weighted mean on the data.

    Raises
    ------
    FloatingPointError
        If that is no number.
    """
    inputs = torch.from_numpy(embeddings.astype(np.float32))
    mean, scale = _scaling(inputs, targets.weight) if isinstance(head, MLPHead) else (torch.zeros(1), torch.ones(1))
    inputs = (inputs - mean) / scale
    values = torch.as_tensor(targets.values)
    weight = torch.as_tensor(targets.loss_weight / targets.loss_weight.mean(), dtype=torch.float32)
    with private_torch_rng(seed):
        head.train()
        _run_steps(head, inputs, values, weight, criterion, dropout, weight_decay)
        head.eval()
    with torch.no_grad():
        losses = per_row(criterion(head(inputs), values))
        if isinstance(head, MLPHead):
            head[0].weight.div_(scale)
            head[0].bias.sub_(head[0].weight @ mean)
    loss = float((losses * weight).mean())
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"The training loss of the head alone is {loss} after its last epoch (learning rate {_LEARNING_RATE}): "
            f"{type(head).__name__} gives no numbers for some embeddings. Give another head."
        )
    return loss


def _run_steps(head: nn.Module, inputs, values, weight, criterion, dropout: float, weight_decay: float) -> None:
    n_batches = -(-len(inputs) // _BATCH_SIZE)
    n_epochs = min(max(_STEPS // n_batches, _EPOCHS[0]), _EPOCHS[1])
    matrices = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in head.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_epochs * n_batches)
    for _ in range(n_epochs):
        for rows in torch.tensor_split(torch.randperm(len(inputs)), n_batches):
            outputs = head(functional.dropout(inputs[rows], dropout))
            loss = (per_row(criterion(outputs, values[rows])) * weight[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _scaling(inputs: torch.Tensor, weight: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    mean, scale = scale_of_embeddings(inputs.numpy(), weight)
    return torch.from_numpy(mean).float(), torch.from_numpy(scale).float()
