"""Pictures for views of small networks, and caches that no other test has filled."""

import numpy as np
import pytest
from small_views import SIZE

from sktl.embedding import clear_cache, default_store


@pytest.fixture
def pictures(rng):
    return rng.integers(0, 256, (21, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _fresh_caches():
    default_store().clear()
    clear_cache()
