"""Fixtures of the ways of transfer."""

import pytest
import torch


@pytest.fixture
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield
