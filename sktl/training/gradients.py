"""Gradients of the parts of a batch, added up."""

from collections.abc import Sequence

import torch
from torch import nn


def add_gradients(parameters: list[nn.Parameter], gradients: Sequence[torch.Tensor | None]) -> None:
    """Add gradients to those that parameters have, in memory of their own, in the layout of the first that came.

    Parameters
    ----------
    parameters : list of nn.Parameter
        What to add to the ``grad`` of.
    gradients : sequence of tensor or None
        As ``torch.autograd.grad`` gives them: two may share memory, and a kernel's gradient may have its channels last.
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = gradient.clone()
        else:
            parameter.grad.add_(gradient)


def lay_out_gradients(parameters: list[nn.Parameter]) -> None:
    """Lay out gradients as their parameters are: fused optimizers take the numbers as they lie in memory.

    Parameters
    ----------
    parameters : list of nn.Parameter
        Whose ``grad`` to lay out.
    """
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
