"""Rows shared out to several devices; CPUs of several numbers, which torch treats as one, stand for GPUs."""

from collections import Counter

import numpy as np
import pytest
import torch

from sktl import PretrainedFeatureTransformer
from sktl.embedding import embed, embed_with_stats, resolve_devices
from sktl.embedding.runtime import Runner

PAIR = ["cpu:0", "cpu:1"]
POLICY = {"dtype": "float32", "runtime": "torch", "batch_size": 4}


@pytest.fixture
def passes(monkeypatch):
    """How many passes each device ran."""
    counts, real = Counter(), Runner.__call__

    def counted(self, batch, exact=False):
        counts[str(self.device)] += 1
        return real(self, batch, exact)

    monkeypatch.setattr(Runner, "__call__", counted)
    return counts


def test_all_devices_work_and_the_result_is_that_of_one(make_rows, view, images, passes):
    alone = embed(make_rows(images), view, device="cpu:0", **POLICY)
    embed(make_rows(images), view, device=PAIR, **POLICY)  # prepares the network for each of them
    passes.clear()
    shared, stats = embed_with_stats(make_rows(images), view, device=PAIR, **POLICY)
    np.testing.assert_array_equal(shared, alone)
    assert set(passes) == set(PAIR)
    assert min(passes.values()) >= 2
    assert sum(passes.values()) == stats.batches


def test_a_device_without_memory_makes_all_take_smaller_passes(make_rows, view, images, monkeypatch):
    real = Runner.__call__

    def small(self, batch, exact=False):
        if str(self.device) == "cpu:1" and len(batch) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(self, batch, exact)

    alone = embed(make_rows(images), view, device="cpu:0", **POLICY)
    monkeypatch.setattr(Runner, "__call__", small)
    shared, stats = embed_with_stats(make_rows(images), view, device=PAIR, **POLICY)
    np.testing.assert_allclose(shared, alone, atol=1e-5)
    assert stats.halvings >= 1


def test_what_is_prepared_for_each_of_many_devices_is_kept(make_rows, view, images, monkeypatch):
    many = [f"cpu:{number}" for number in range(6)]
    embed(make_rows(images), view, device=many, **POLICY)
    made, real = [], Runner.__init__
    monkeypatch.setattr(Runner, "__init__", lambda self, *args: made.append(self) or real(self, *args))
    embed(make_rows(images), view, device=many, **POLICY)
    assert not made


def test_the_transformer_takes_a_list(image_arrays, passes):
    X = image_arrays[0]
    options = {**POLICY, "image_size": 32, "cache_bytes": 0}
    one = PretrainedFeatureTransformer(device="cpu", **options)
    two = PretrainedFeatureTransformer(device=PAIR, output="torch", **options)
    expected = one.fit_transform(X)
    passes.clear()
    found = two.fit_transform(X)
    assert set(passes) == set(PAIR)
    assert found.device.type == "cpu"
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("device", [[], ["cpu", "cpu"], ["cpu", "cpu:0"], ["cpu:0", torch.device("cpu", 0)]])
def test_lists_that_name_no_devices_to_share_rows(device):
    with pytest.raises(ValueError, match="must name one device, or several different ones of one type"):
        resolve_devices(device)


def test_one_device_is_a_list_of_one():
    assert resolve_devices("cpu") == resolve_devices(["cpu"]) == (torch.device("cpu"),)
