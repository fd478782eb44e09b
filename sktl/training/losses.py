"""Losses that torch does not have as they are needed here."""

import torch
from torch import nn
from torch.nn import functional


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """torch's cross-entropy, with labels smoothed in training mode alone: what is measured is the plain loss."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compare outputs of shape (n, n_classes) with class indices of shape (n,)."""
        options = {"weight": self.weight, "ignore_index": self.ignore_index, "reduction": self.reduction}
        return functional.cross_entropy(input, target, label_smoothing=_smoothing(self), **options)


class MultilabelLoss(nn.Module):
    """The binary cross-entropy of each label by itself.

    Parameters
    ----------
    label_weight : tensor of shape (n_labels, 2), default=None
        How much a row counts that has not the label, and one that has it.
    label_smoothing : float, default=0.0
        Share of each target that goes half to yes and half to no, in training mode.
    reduction : {"none", "mean"}, default="mean"
        What is returned: the losses, or their mean.
    """

    def __init__(self, label_weight: torch.Tensor | None = None, label_smoothing: float = 0.0, reduction: str = "mean"):
        super().__init__()
        self.register_buffer("label_weight", label_weight)
        self.label_smoothing = label_smoothing
        self.reduction = reduction

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compare outputs with targets of 0 and 1, both of shape (n, n_labels)."""
        smoothing = _smoothing(self)
        wanted = targets * (1 - smoothing) + smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
        if self.label_weight is not None:
            without, having = self.label_weight.T
            losses = losses * torch.where(targets > 0.5, having, without)
        return losses if self.reduction == "none" else losses.mean()


def _smoothing(loss: nn.Module) -> float:
    return loss.label_smoothing if loss.training else 0.0


def per_row(losses: torch.Tensor) -> torch.Tensor:
    """Return one loss per row: the mean over its outputs, where there are several.

    Parameters
    ----------
    losses : tensor of shape (n, ...)
        Of a criterion with ``reduction="none"``.

    Raises
    ------
    ValueError
        If there is one loss for all rows: their weights would not count.
    """
    if losses.ndim == 0:
        raise ValueError("The criterion gives one number for all rows; with reduction='none' it must give each row's.")
    return losses.flatten(start_dim=1).mean(dim=1) if losses.ndim > 1 else losses
