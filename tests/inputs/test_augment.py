"""Random variants of pictures: repeatable, private, the same in any thread; what is no choice is named."""

import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sktl.exceptions import InputError
from sktl.inputs import Augmenter

CHOICES = ["light", "randaug", "rand-m9-mstd0.5-inc1", "original", "v0", "3a", "augmix-m3-w3"]
CONFIG = {"input_size": (3, 32, 40), "mean": (0.5, 0.4, 0.3), "interpolation": "bilinear"}


@pytest.fixture
def pixels(image_arrays):
    return image_arrays[0][0, 8:40, 12:52].copy()


@pytest.mark.parametrize("choice", CHOICES)
def test_a_seed_gives_one_variant_and_other_seeds_others(pixels, choice):
    before = pixels.copy()
    augment, again = Augmenter(choice, CONFIG), Augmenter(choice, CONFIG)
    first = [augment(pixels, seed) for seed in range(12)]
    for seed in reversed(range(12)):
        np.testing.assert_array_equal(again(pixels, seed), first[seed])
    assert len({variant.tobytes() for variant in first}) >= 4
    assert all(variant.shape == pixels.shape and variant.dtype == np.uint8 for variant in first)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("choice", ["randaug", "augmix-m3-w3"])
def test_threads_have_no_influence(pixels, choice):
    augment = Augmenter(choice, CONFIG)
    alone = [augment(pixels, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda seed: augment(pixels, seed), range(40)))
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("choice", CHOICES)
def test_global_generators_are_left_alone(pixels, choice):
    def states():
        return hash(random.getstate()), np.random.get_state()[1].tobytes()  # noqa: NPY002

    before = states()
    variant = Augmenter(choice, CONFIG)(pixels, 3)
    assert states() == before
    random.seed(99)
    np.testing.assert_array_equal(Augmenter(choice, CONFIG)(pixels, 3), variant)


def test_light_mirrors_every_other_picture_and_crops(pixels):
    augment = Augmenter("light", CONFIG)
    pixels = np.zeros_like(pixels)
    pixels[:, 20:] = 255  # dark on the left
    left_is_dark = [
        bool(variant[:, :5].mean() < variant[:, -5:].mean()) for variant in map(augment, [pixels] * 60, range(60))
    ]
    assert 18 < sum(left_is_dark) < 42


def test_strongest_operations_are_possible(pixels):
    """With no bits left, Pillow's posterize raises an error."""
    augment = Augmenter("rand-m10-p1-n15", CONFIG)
    for seed in range(20):
        augment(pixels, seed)


def test_callable_gets_pixels_and_a_generator_of_its_own(pixels):
    def darken(image, rng):
        image -= np.minimum(image, rng.integers(1, 50, dtype=np.uint8))
        return image

    before = pixels.copy()
    augment = Augmenter(darken, CONFIG)
    np.testing.assert_array_equal(augment(pixels, 5), augment(pixels, 5))
    assert augment(pixels, 5).sum() < pixels.sum()
    np.testing.assert_array_equal(pixels, before)
    assert augment.key is None


@pytest.mark.parametrize("result", [lambda image: image.astype(float), lambda image: image[:5], lambda image: None])
def test_callable_that_returns_something_else_is_named(pixels, result):
    with pytest.raises(InputError, match=r"'augment' callable must return a uint8 array of shape \(32, 40, 3\), got"):
        Augmenter(lambda image, rng: result(image), CONFIG)(pixels, 0)


@pytest.mark.parametrize("text", ["heavy", "rand-q3", ""])
def test_text_that_timm_does_not_know_is_named(text):
    with pytest.raises(ValueError, match=f"'augment' parameter must be None, 'light'.* got {text!r} instead"):
        Augmenter(text, CONFIG)


def test_augmenter_survives_pickle(pixels):
    augment = Augmenter("randaug", CONFIG)
    expected = augment(pixels, 1)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(augment))(pixels, 1), expected)
