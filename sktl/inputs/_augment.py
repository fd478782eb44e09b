"""Random variants of pictures for training, by timm's augmentations on random numbers of one's own."""

import threading
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from sktl._random import OwnGenerators, with_own_generators
from sktl.exceptions import InputError

RANDAUG = "rand-m9-mstd0.5-inc1"
_LIGHT = {"scale": (0.5, 1.0), "ratio": (3 / 4, 4 / 3)}


class Augmenter:
    """Make a random variant of a picture; the same picture, seed and choice give the same variant, in any thread.

    Parameters
    ----------
    choice : {"light", "randaug"}, str or callable
        "light" crops a part of at least half the picture's area, resizes it and mirrors it half of the time. "randaug"
        does the same, followed by RandAugment with two operations. Any other string is one of timm's, for AutoAugment,
        RandAugment, AugMix or 3-Augment, and is applied without the crop and the mirror. A callable takes pixels and a
        :class:`numpy.random.Generator`.
    data_config : dict
        timm's data config: the size, the interpolation, and the mean that fills what comes from beyond the edge.

    References
    ----------
    Cubuk, E. D., Zoph, B., Shlens, J., Le, Q. V.: RandAugment: Practical automated data augmentation with a reduced
    search space. CVPR Workshops 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from sktl.inputs import Augmenter
    >>> augment = Augmenter("light", {"input_size": (3, 8, 8)})
    >>> pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    >>> bool((augment(pixels, seed=0) == augment(pixels, seed=0)).all())
    True
    """

    def __init__(self, choice: str | Callable, data_config: dict):
        self.choice = choice
        self.data_config = data_config
        self._own = threading.local()  # timm's operations share the generators of their module
        if isinstance(choice, str):
            self._timm_transform()

    @property
    def key(self) -> str | None:
        """A name to store the variants that a seed gives under; None for a callable, which has no such name."""
        return self.choice if isinstance(self.choice, str) else None

    def __call__(self, pixels: np.ndarray, seed: int) -> np.ndarray:
        """Make one variant.

        Parameters
        ----------
        pixels : ndarray of uint8 of shape (h, w, 3)
            A picture of the network's input size.
        seed : int
            Decides all that is random; at most 2**32 - 1.

        Returns
        -------
        pixels : ndarray of uint8 of shape (h, w, 3)
            New.
        """
        if not isinstance(self.choice, str):
            return self._checked(self.choice(pixels.copy(), np.random.default_rng(seed)), pixels.shape)
        generators, transform = self._timm_transform()
        generators.seed(seed)
        return np.array(transform(Image.fromarray(pixels)))

    def _checked(self, result, shape: tuple[int, ...]) -> np.ndarray:
        if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.shape != shape:
            found = f"{result.dtype} of shape {result.shape}" if isinstance(result, np.ndarray) else type(result)
            raise InputError(f"The 'augment' callable must return a uint8 array of shape {shape}, got {found} instead.")
        return np.ascontiguousarray(result)

    def _timm_transform(self) -> tuple[OwnGenerators, Callable]:
        """Return this thread's transform and the generators that it draws from."""
        if not hasattr(self._own, "transform"):
            self._own.transform = _timm_transform(self.choice, self.data_config)
        return self._own.transform

    def __getstate__(self):
        return {"choice": self.choice, "data_config": self.data_config}

    def __setstate__(self, state):
        self.__init__(**state)


def _timm_transform(choice: str, data_config: dict) -> tuple[OwnGenerators, Callable]:
    generators = OwnGenerators()
    steps = []
    if choice in ("light", "randaug"):
        import timm.data.transforms  # takes seconds

        transforms = with_own_generators(timm.data.transforms, generators)
        size = tuple(data_config["input_size"][1:])
        interpolation = data_config.get("interpolation", "bicubic")
        steps.append(transforms.RandomResizedCropAndInterpolation(size, interpolation=interpolation, **_LIGHT))
        steps.append(lambda image: ImageOps.mirror(image) if generators.random.random() < 0.5 else image)
    if choice != "light":
        steps.append(_policy(RANDAUG if choice == "randaug" else choice, data_config, generators))

    def transform(image: Image.Image) -> Image.Image:
        for step in steps:
            image = step(image)
        return image

    return generators, transform


def _policy(text: str, data_config: dict, generators: OwnGenerators) -> Callable:
    """Read one of timm's strings, as ``timm.data.create_transform`` does."""
    import timm.data.auto_augment

    auto_augment = with_own_generators(timm.data.auto_augment, generators)
    for name in (name for name in auto_augment.NAME_TO_OP if name.startswith("Posterize")):
        auto_augment.NAME_TO_OP[name] = _keeping_a_bit(auto_augment.posterize)
    mean = data_config.get("mean", (0.5, 0.5, 0.5))
    hparams = {
        "translate_const": int(min(data_config["input_size"][1:]) * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
    }
    try:
        if text.startswith("rand"):
            return auto_augment.rand_augment_transform(text, hparams)
        if text.startswith("augmix"):
            return auto_augment.augment_and_mix_transform(text, {**hparams, "translate_pct": 0.3})
        return auto_augment.auto_augment_transform(text, hparams)
    except (AssertionError, ValueError) as error:
        raise ValueError(
            "The 'augment' parameter must be None, 'light', 'randaug', a callable, or a string that timm knows "
            f"(such as {RANDAUG!r}, 'original', '3a' or 'augmix-m3-w3'), got {text!r} instead."
        ) from error


def _keeping_a_bit(posterize: Callable) -> Callable:
    """Let timm's strongest posterize keep one bit of each channel: with none, Pillow 13 raises an error."""

    def keep(image: Image.Image, bits: int, **kwargs) -> Image.Image:
        return posterize(image, max(1, bits), **kwargs)

    return keep
