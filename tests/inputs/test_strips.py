"""Rows of plain numbers as strips of grey."""

import numpy as np
import pytest
import torch

from sktl.inputs import StripRows


def matrix_of_stretching(n_features, width):
    """Antialiased linear interpolation as a matrix: what becomes of each unit vector."""
    identity = torch.eye(n_features, dtype=torch.float64)[:, None, None, :]
    return torch.nn.functional.interpolate(identity, size=(1, width), mode="bilinear", antialias=True)[:, 0, 0].numpy()


@pytest.mark.parametrize("width", [7, 32])
@pytest.mark.parametrize("n_features", [1, 2, 5, 31, 32, 33, 64, 300])
def test_rows_are_stretched_linearly_along_the_width(n_features, width):
    values = np.random.default_rng(0).normal(size=(4, n_features))
    expected = (values @ matrix_of_stretching(n_features, width)).astype(np.float32)
    rows = StripRows(values, (3, 9, width))
    for row, strip in zip(rows, expected, strict=True):
        found = row.model_input()
        assert found.shape == (3, 9, width)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.broadcast_to(strip, found.shape), rtol=1e-6, atol=1e-7)


def test_a_row_is_the_same_alone_and_in_a_crowd():
    values = np.random.default_rng(0).normal(size=(6, 50))
    rows = StripRows(values, (3, 4, 32))
    np.testing.assert_array_equal(rows[4].model_input(), StripRows(values[4:5], (3, 4, 32))[0].model_input())
    np.testing.assert_array_equal(rows[4].model_input(), rows.take(np.array([2, 4]))[1].model_input())


def test_read_only_numbers_are_read_without_a_warning():
    values = np.arange(6.0).reshape(1, 6)
    values.flags.writeable = False
    np.testing.assert_array_equal(StripRows(values, (3, 1, 6))[0].model_input()[0], values)


def test_many_columns_need_no_memory_for_all_pairs_of_them():
    """Large pictures that came flattened, without ``image_shape``: a matrix of columns by columns would take 8 TB."""
    values = np.random.default_rng(0).normal(size=(1, 1_000_000))
    strip = StripRows(values, (3, 2, 10))[0].model_input()[0, 0]
    assert np.abs(strip).max() < 0.02  # means of 100,000 or so
    assert len(np.unique(strip)) == 10
