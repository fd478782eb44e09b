"""Values of arrays: which dtypes and ranges are pixels, and what is said of the others."""

import numpy as np
import pytest
import torch
from PIL import Image

from sktl.inputs import RowError, open_rows


def read(array):
    return open_rows([array])[0].pixels()


def test_dtypes():
    np.testing.assert_array_equal(read(np.array([[False, True]]))[..., 0], [[0, 255]])
    np.testing.assert_array_equal(
        read(np.array([[0, 127, 128, 255, 65535]], dtype=np.uint16))[..., 0], [[0, 0, 0, 1, 255]]
    )
    np.testing.assert_array_equal(read(np.array([[0, 1, 255]], dtype=np.int32))[..., 0], [[0, 1, 255]])
    for dtype in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(read(np.array([[0, 0.5, 1]], dtype=dtype))[..., 0], [[0, 128, 255]])
    np.testing.assert_array_equal(read(torch.tensor([[0, 0.5, 1]], dtype=torch.bfloat16))[..., 0], [[0, 128, 255]])


def test_every_byte_survives_the_way_through_floats():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(read(values.astype(dtype) / 255)[..., 0], values)
    np.testing.assert_array_equal(read(values * np.uint16(257))[..., 0], values)


def test_rounding_errors_are_forgiven():
    np.testing.assert_array_equal(read(np.array([[-1e-7, 1 + 1e-7]]))[..., 0], [[0, 255]])


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((2, 2), 255.0), r"must lie in \[0, 1\], these range from 255 to 255; divide them by 255"),
        (np.array([[-2.1, 2.6]]), r"range from -2.1 to 2.6; undo their normalisation"),
        (np.array([[0.1, np.nan]]), "hold NaN"),
        (np.array([[0.1, np.inf]]), "hold infinity"),
        (np.array([[0.1, -np.inf]], dtype=np.float32), "hold infinity"),
        (np.array([[0, 256]]), r"int64 pixels must lie within 0..255, these range from 0 to 256"),
        (np.array([[-1, 25]], dtype=np.int8), r"range from -1 to 25"),
        (np.zeros((2, 2), dtype=complex), "dtype complex128"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "has no pixels"),
        (np.zeros((2, 2, 2, 3), dtype=np.uint8), "is not an image"),
        (np.zeros((8, 9, 2), dtype=np.uint8), "no axis of 1, 3 or 4 channels"),
        (torch.zeros(4, 4).to_sparse(), "cannot be read as an array"),
    ],
)
def test_values_that_are_no_pixels(array, reason):
    rows = open_rows([np.zeros((4, 4), dtype=np.uint8), array])
    with pytest.raises(RowError, match=reason):
        rows[1]


def test_one_bad_row_of_a_stack_is_named_alone():
    X = np.zeros((3, 8, 8, 3))
    X[1, 0, 0, 0] = np.nan
    rows = open_rows(X)
    rows[0], rows[2]
    with pytest.raises(RowError, match="NaN"):
        rows[1]


def test_alpha_is_composited_on_white_as_pillow_does():
    rgba = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    np.testing.assert_array_equal(read(rgba), read(Image.fromarray(rgba)))
    rgba[..., 3] = 0
    assert (read(rgba) == 255).all()


def test_uint8_is_not_copied_and_not_writeable():
    X = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3), dtype=np.uint8)
    pixels = open_rows(X)[1].pixels()
    assert np.shares_memory(pixels, X)
    assert not pixels.flags.writeable
    assert X.flags.writeable
    X.flags.writeable = False
    np.testing.assert_array_equal(open_rows(X)[1].pixels(), X[1])
