"""The one-call resize against timm's own evaluation transform."""

import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from sktl.exceptions import BackboneError
from sktl.inputs import ImagePreprocessor, open_rows

CONFIG = {
    "input_size": (3, 64, 64),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
SIZES = [(375, 500), (500, 375), (64, 64), (73, 73), (300, 301), (40, 50), (200, 90), (64, 200), (1, 1), (3, 40)]


def timm_says(config, pixels):
    from timm.data import create_transform

    transform = create_transform(**config, is_training=False, normalize=False)
    return np.asarray(transform(Image.fromarray(pixels))).transpose(1, 2, 0)


def peak_memory():
    """Bytes of memory that this process held at its height."""
    resource = pytest.importorskip("resource", reason="there is no getrusage on Windows")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def difference(config, pixels):
    result = ImagePreprocessor(config)(pixels)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert result.shape == (*config["input_size"][1:], 3)
    return np.abs(result.astype(int) - timm_says(config, pixels))


def smooth_picture(height, width):
    """A picture without hard edges, where no filter overshoots."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (7 + k)) * np.cos(y / (5 + 2 * k)) for k in range(3)]
    return (128 + 90 * np.stack(waves, axis=2)).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("input_size", [(3, 64, 64), (3, 48, 80), (3, 80, 48)])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "hamming"])
def test_equal_to_timm(size, input_size, crop_mode, interpolation):
    for crop_pct in (0.875, 0.9, 1.0):
        config = CONFIG | {"input_size": input_size, "crop_mode": crop_mode, "interpolation": interpolation}
        found = difference(config | {"crop_pct": crop_pct}, smooth_picture(*size))
        assert found.max() <= 2
        assert (found > 1).mean() < 0.01


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_hard_edges(crop_mode, rng):
    """Where a filter overshoots black or white, it matters which axis comes first; that depends on the shape."""
    pixels = rng.choice(np.array([0, 255], dtype=np.uint8), (30, 40, 3)).repeat(10, axis=0).repeat(10, axis=1)
    for size in ((300, 400), (300, 228), (300, 90), (90, 300), (250, 100), (50, 60)):
        for crop_pct in (0.875, 1.0):
            found = difference(CONFIG | {"crop_mode": crop_mode, "crop_pct": crop_pct}, pixels[: size[0], : size[1]])
            assert found.max() <= 2
            assert (found > 1).mean() < 0.01


def test_equal_to_timm_on_photos(unpack_image_set):
    files = sorted((unpack_image_set("caltech20") / "test").glob("*/*"))[::25]
    for interpolation, limit in (("bilinear", 1), ("bicubic", 2)):
        config = CONFIG | {"input_size": (3, 224, 224), "interpolation": interpolation}
        for row in open_rows(files):
            found = difference(config, row.pixels())
            assert found.max() <= limit
            assert (found > 1).mean() < 1e-4


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 3_000_000), (2, 70_000)])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_elongated_pictures_need_no_huge_intermediates(size, crop_mode):
    pixels = np.full((*size, 3), 77, dtype=np.uint8)
    peak = peak_memory()
    result = ImagePreprocessor(CONFIG | {"crop_mode": crop_mode, "mean": (77 / 255,) * 3})(pixels)
    assert peak_memory() - peak < 500 * 2**20  # scaling the short side up to 64 pixels first takes 36 GB
    assert (result == 77).all()


def test_the_middle_of_a_long_picture_is_found():
    """Pillow takes the box in single precision, which is coarser than a pixel far from the origin."""
    pixels = np.zeros((1, 2_000_001, 3), dtype=np.uint8)
    pixels[0, 1_000_000] = 255
    result = ImagePreprocessor(CONFIG | {"interpolation": "nearest", "crop_pct": 1.0})(pixels)
    assert (result == 255).all()


def test_nothing_to_do_passes_the_array_through(rng):
    X = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    pixels = open_rows(X)[0].pixels()
    result = ImagePreprocessor(CONFIG | {"crop_pct": 1.0})(pixels)
    assert np.shares_memory(result, X)
    np.testing.assert_array_equal(result, X[0])
    assert not np.shares_memory(ImagePreprocessor(CONFIG)(pixels), X)


def test_source_is_left_alone_and_may_be_read_only(rng):
    pixels = rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    before = pixels.copy()
    pixels.flags.writeable = False
    ImagePreprocessor(CONFIG)(pixels)
    np.testing.assert_array_equal(pixels, before)


def test_config_is_plain_and_complete():
    preprocess = ImagePreprocessor({"input_size": (3, 64, 64)})
    assert json.loads(json.dumps(preprocess.config)) == preprocess.config
    assert preprocess.config == ImagePreprocessor(CONFIG).config
    assert preprocess.config == ImagePreprocessor(preprocess.config).config
    assert isinstance(preprocess.config["version"], int)
    for change in ({"crop_pct": 1.0}, {"crop_mode": "squash"}, {"interpolation": "box"}, {"mean": (0, 0, 0)}):
        assert ImagePreprocessor(CONFIG | change).config != preprocess.config
    assert ImagePreprocessor(CONFIG | {"interpolation": "random"}).config["interpolation"] == "bilinear"


def test_pickle(rng):
    preprocess = ImagePreprocessor(CONFIG)
    pixels = rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(preprocess))(pixels), preprocess(pixels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_mode": "corner"}, "'crop_mode' of a data config must be one of .* got 'corner' instead"),
        ({"interpolation": "cubic"}, "'interpolation' of a data config must be one of"),
        ({"input_size": (1, 28, 28)}, r"must be \(3, height, width\), got \(1, 28, 28\)"),
        ({"input_size": (3, 0, 28)}, r"must be \(3, height, width\)"),
        ({"input_size": 28}, "'input_size' of a data config must hold three numbers, got 28"),
        ({"crop_pct": -1}, "'crop_pct' of a data config must be above 0"),
        ({"crop_pct": 0}, "'crop_pct' of a data config must be above 0"),
        ({"std": (0.2, 0.2, 0)}, "'std' of a data config must hold values above 0"),
        ({"mean": "0.5"}, "'mean' of a data config must hold three numbers"),
        ({"mean": (0.5,)}, "three values each"),
    ],
)
def test_configs_that_cannot_be(change, message):
    with pytest.raises(BackboneError, match=message):
        ImagePreprocessor(CONFIG | change)
