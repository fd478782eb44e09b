"""Rows for stores."""

import numpy as np

NAMESPACE, OTHER = "ab" * 32, "cd" * 32


def digest(k):
    return k.to_bytes(32, "big")


def rows(*numbers, width=64):
    """Rows that show by their values whether they are whole and whose they are."""
    return {digest(k): np.full(width, k, dtype=np.float32) for k in numbers}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        np.testing.assert_array_equal(found[key], row)
