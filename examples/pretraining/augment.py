"""Random views of a batch of pictures, as tensor operations with a local generator."""

import math

import torch
from torch.nn import functional


def uniform(n, low, high, generator):
    """Draw ``n`` numbers between two bounds."""
    return low + (high - low) * torch.rand(n, generator=generator)


def chance(n, probability, generator):
    """Draw ``n`` booleans that are true with a probability."""
    return torch.rand(n, generator=generator) < probability


def crop(images, size, may_flip, generator, area=(0.35, 1.0)):
    """Cut a random, slightly turned and squeezed window out of every image and resize it.

    Parameters
    ----------
    images : Tensor of shape (n, 3, H, W)
    size : int
        Side of the result.
    may_flip : Tensor of shape (n,), bool
        Whether left and right may be exchanged: not for characters.
    generator : torch.Generator
    area : tuple of float, default=(0.35, 1.0)
        Smallest and largest part of the image's area that a window covers.

    Returns
    -------
    Tensor of shape (n, 3, size, size)
    """
    n = len(images)
    if size * 2 <= images.shape[-1] + 8:
        images = functional.avg_pool2d(images, 2)
    side = uniform(n, *area, generator).sqrt()
    squeeze = uniform(n, -0.18, 0.18, generator).exp()
    turn = uniform(n, -math.pi / 12, math.pi / 12, generator)
    flip = torch.where(may_flip & chance(n, 0.5, generator), -1.0, 1.0)
    shift_x, shift_y = ((1 - side) * uniform(n, -1, 1, generator) for _ in range(2))
    cosine, sine = turn.cos() * side, turn.sin() * side
    rows = [flip * cosine * squeeze, -sine / squeeze, shift_x, flip * sine * squeeze, cosine / squeeze, shift_y]
    theta = torch.stack(rows, dim=1).view(n, 2, 3)
    window = functional.affine_grid(theta, [n, 3, size, size], align_corners=False)
    return functional.grid_sample(images, window, padding_mode="reflection", align_corners=False)


def recolour(images, generator):
    """Change brightness, contrast, saturation and tint; make some grey and some negative."""
    n = len(images)
    column = (n, 1, 1, 1)
    grey = images.mean(dim=1, keepdim=True)
    saturation = uniform(n, 0.4, 1.5, generator)
    saturation[chance(n, 0.2, generator)] = 0.0
    images = grey + (images - grey) * saturation.view(column)
    tint = 1 + 0.15 * torch.randn(n, 3, 1, 1, generator=generator) * (saturation > 0).view(column)
    contrast = uniform(n, 0.5, 1.4, generator).view(column)
    brightness = uniform(n, -0.2, 0.2, generator).view(column)
    images = (images * tint - 0.5) * contrast + 0.5 + brightness
    negative = chance(n, 0.1, generator).view(column)
    return torch.where(negative, 1 - images, images)


def coarsen(images, generator, share=0.25):
    """Lose the detail of some images: shrink them to 8 ... 24 pixels and enlarge them again."""
    size = images.shape[-1]
    chosen = chance(len(images), share, generator).nonzero().squeeze(1)
    for part in chosen.chunk(2):
        small = int(torch.randint(8, 25, (), generator=generator))
        tiny = functional.interpolate(images[part], (small, small), mode="area")
        images[part] = functional.interpolate(tiny, (size, size), mode="bicubic", align_corners=False)
    return images


def random_views(pixels, size, may_flip, generator):
    """Turn stored pictures into network input.

    Parameters
    ----------
    pixels : Tensor of shape (n, H, W, 3), uint8
    size : int
        Side of the views.
    may_flip : Tensor of shape (n,), bool
        Whether left and right may be exchanged.
    generator : torch.Generator
        Source of all randomness.

    Returns
    -------
    Tensor of shape (n, 3, size, size)
        Values mostly in [-1, 1], in channels-last memory.
    """
    images = pixels.permute(0, 3, 1, 2).float() / 255
    images = coarsen(recolour(crop(images, size, may_flip, generator), generator), generator)
    noise = torch.randn(images.shape, generator=generator) * uniform(len(images), 0, 0.05, generator).view(-1, 1, 1, 1)
    return ((images + noise).clamp(0, 1) * 2 - 1).contiguous(memory_format=torch.channels_last)
