"""Mixtures of two images each, by timm's mixup and cutmix on random numbers of one's own."""

from functools import cached_property

import torch

from sktl._random import OwnGenerators, with_own_generators
from sktl.exceptions import InputError


class Mixing:
    """Mix each image of a batch with another one of it; the loss is mixed in the same proportion.

    Parameters
    ----------
    mixup : float
        Parameter of the beta distribution that the share of an image comes from; 0 does not add images up.
    cutmix : float
        The same, for images that are patched with a rectangle of another one; 0 does not patch. If both are given,
        a coin decides for each batch.

    References
    ----------
    Zhang, H., Cisse, M., Dauphin, Y. N., Lopez-Paz, D.: mixup: Beyond Empirical Risk Minimization. ICLR 2018.

    Yun, S., et al.: CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features. ICCV 2019.
    """

    def __init__(self, mixup: float, cutmix: float):
        self.mixup = mixup
        self.cutmix = cutmix
        self._generators = OwnGenerators()

    @cached_property
    def _timm_mixup(self):
        import timm.data.mixup  # takes seconds

        own = with_own_generators(timm.data.mixup, self._generators)
        return own.Mixup(mixup_alpha=self.mixup, cutmix_alpha=self.cutmix)

    def mix(self, images: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Mix the first image with the last one, the second with the last but one, and so on.

        Parameters
        ----------
        images : tensor of float, shape (n, 3, height, width)
            Normalised.

        Returns
        -------
        images : tensor of float, shape (n, 3, height, width)
            New.
        share : float
            Of each image in its mixture.
        """
        if not images.is_floating_point():
            raise InputError("mixup= and cutmix= need images; texts cannot be mixed.")
        self._generators.seed(int(torch.randint(2**32, ())))  # from torch's generator, whose state checkpoints keep
        mixed = images.clone()
        share = self._timm_mixup._mix_batch(mixed)  # calling it as a whole would ask for an even number of images
        return mixed, float(share)
