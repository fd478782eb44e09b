"""What a view looks like at a glance: its colours and edges, place by place, as numbers to be predicted.

Class and contrastive losses ask for what two views of a picture share, so a network trained on them alone learns to
overlook what the views change at random: colour, place, contrast. A user's classes often differ by just that. A linear
prediction of these numbers from the embedding keeps them readable.
"""

import math

import torch
from torch.nn import functional

SIDE = 32
"""Pixels per side that a view is looked at with, whatever its own size."""
GRID = 4
"""Places per side."""
LEVELS = 4
"""Levels per colour channel of the histogram."""
ORIENTATIONS = 8
"""Directions of edges that are told apart."""
N_NUMBERS = [3 * GRID**2, LEVELS**3, ORIENTATIONS * GRID**2]
"""How many numbers describe colours by place, colours wherever they are, and edges by place."""


def colour_grid(views):
    """Mean colour of every place, of shape (n, 3 * GRID ** 2)."""
    return functional.adaptive_avg_pool2d(views, GRID).flatten(1)


def colour_histogram(views):
    """Share of each of LEVELS ** 3 colours, wherever they are; a pixel between two levels counts for both in part."""
    levels = torch.linspace(-1, 1, LEVELS).view(-1, 1)
    part = (1 - (views.flatten(2).unsqueeze(2) - levels).abs() * (LEVELS - 1) / 2).clamp(min=0)
    red_green = (part[:, 0].unsqueeze(2) * part[:, 1].unsqueeze(1)).flatten(1, 2)
    return (red_green @ part[:, 2].transpose(1, 2)).flatten(1).div(views[0, 0].numel()).sqrt()


def edge_grid(views):
    """Histogram of edge directions in every place, of unit length for the whole view (as in HOG)."""
    grey = views.mean(dim=1, keepdim=True)
    dx = functional.pad(grey[..., 2:] - grey[..., :-2], (1, 1))
    dy = functional.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    strength = torch.hypot(dx, dy)
    direction = torch.atan2(dy, dx) * (ORIENTATIONS / math.pi)
    index = direction.round().long().remainder(ORIENTATIONS)
    maps = torch.zeros(len(views), ORIENTATIONS, *views.shape[2:]).scatter_(1, index, strength)
    return functional.normalize(functional.adaptive_avg_pool2d(maps, GRID).flatten(1), dim=1).sqrt()


@torch.no_grad()
def glance(views):
    """Describe views by their colours and edges.

    Parameters
    ----------
    views : Tensor of shape (n, 3, H, W)
        Values in [-1, 1].

    Returns
    -------
    list of Tensor of shape (n, a number of ``N_NUMBERS``)
        Colours by place, colours wherever they are, and edges by place; every column standardised over the views, so
        that predicting its mean costs 1.
    """
    views = functional.adaptive_avg_pool2d(views, SIDE)
    groups = [describe(views) for describe in (colour_grid, colour_histogram, edge_grid)]
    return [(numbers - numbers.mean(dim=0)) / (numbers.std(dim=0) + 1e-2) for numbers in groups]


def glance_loss(described, views):
    """Error of a description of views, in shares of the variance: for colours by place, the histogram, and edges.

    Parameters
    ----------
    described : Tensor of shape (n, sum(N_NUMBERS))
    views : Tensor of shape (n, 3, H, W)

    Returns
    -------
    Tensor of shape (3,)
    """
    pairs = zip(described.split(N_NUMBERS, dim=1), glance(views), strict=True)
    return torch.stack([functional.mse_loss(*pair) for pair in pairs])
