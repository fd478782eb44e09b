"""What training that goes on from an earlier call must have in common with it."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_models import three_digits

from sktl import FineTuneClassifier
from sktl.backbones import load_backbone
from sktl.strategies import JointTraining
from sktl.training import checkpoint

TINY = {"image_shape": (8, 8), "image_size": 32, "max_epochs": 1, "random_state": 0, "dtype": "float32"}


@pytest.fixture
def few():
    return three_digits()


# What is described of the parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", [torch.Tensor.bfloat16, torch.Tensor.half, lambda value: torch.nn.Parameter(value.clone())]
)
def test_weights_may_be_tensors_of_any_kind(few, form):
    state = load_backbone("sktl/tiny").module.state_dict()
    weights = {name: form(value) if value.is_floating_point() else value for name, value in state.items()}
    model = FineTuneClassifier(strategy="feature_extraction", weights=weights, **TINY)
    assert model.fit(*few).partial_fit(*few).score(*few) > 0.8


def test_fits_do_not_hash_what_is_compared_with_nothing(few, monkeypatch):
    images, y = torch.from_numpy(few[0].astype("u1").reshape(-1, 8, 8, 1).repeat(3, axis=3)), few[1]
    base = FineTuneClassifier(strategy="feature_extraction", **TINY).set_params(image_shape=None).fit(images, y)
    weights = dict(base.backbone_.module.state_dict())
    monkeypatch.setattr(checkpoint, "digest_of", None)  # cannot be called
    clone(base).set_params(backbone=base, strategy=JointTraining(images, y)).fit(images, y)
    clone(base).set_params(weights=weights).fit(images, y)


def test_tensors_are_described_by_their_values(few):
    tensors = [torch.ones(2), torch.ones(2).bfloat16(), torch.zeros(2), torch.ones(1, 2), np.ones(2), np.ones(2, "f4")]
    assert len({checkpoint.describe(tensor) for tensor in tensors}) == len(tensors)
    assert checkpoint.describe(torch.ones(2)) == checkpoint.describe(torch.nn.Parameter(torch.ones(2)))
