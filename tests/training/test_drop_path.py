"""Stochastic depth: in training alone, and in what is trained alone."""

import pickle

import numpy as np
import pytest
import torch
from small_models import difference, make_model, three_digits
from timm.layers import DropPath

from sktl import FineTuneClassifier, FineTuneRegressor
from sktl.backbones import load_backbone
from sktl.exceptions import BackboneError
from sktl.strategies import FineTuning, PartialFineTuning
from sktl.training import build_network, zero_linear

OPTIONS = {"image_shape": (8, 8), "image_size": 32, "max_epochs": 2, "random_state": 0}


def dropping(network):
    return [part for part in network.backbone.modules() if isinstance(part, DropPath) and part.drop_prob]


@pytest.mark.parametrize("name", ["sktl/tiny", "test_convnext", "test_vit"])
def test_blocks_are_left_out_in_training_alone(name):
    backbone = load_backbone(name, "pretrained" if name.startswith("sktl/") else None, image_size=32)
    network = build_network(backbone, zero_linear(backbone.width, 3), FineTuning(), 0, drop_path=0.5)
    rates = [part.drop_prob for part in dropping(network)]
    assert rates == sorted(rates)
    assert 0.4 <= rates[-1] <= 0.5
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        plain = backbone.module(images)
        torch.testing.assert_close(network.backbone(images), plain)
        network.train()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            assert not torch.equal(network.backbone(images), plain)


def test_frozen_blocks_are_never_left_out():
    backbone = load_backbone("sktl/tiny", image_size=32)
    network = build_network(backbone, zero_linear(backbone.width, 3), PartialFineTuning(), 0, drop_path=0.5).train()
    at_work = [part.training for part in dropping(network)]
    assert at_work == sorted(at_work)  # the last ones alone
    assert any(at_work)
    assert not all(at_work)


@pytest.mark.parametrize("estimator", [FineTuneClassifier, FineTuneRegressor])
def test_estimators_hand_it_on(estimator):
    X, y = three_digits()
    plain = estimator(strategy="partial", **OPTIONS).fit(X, y)
    model = estimator(strategy="partial", drop_path=0.5, **OPTIONS).fit(X, y)
    assert difference(plain, model) > 0
    assert model.history_[-1]["frozen_prefix"] == plain.history_[-1]["frozen_prefix"]
    np.testing.assert_array_equal(model.predict(X), model.predict(X))
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict(X), model.predict(X))
    again = estimator(strategy="partial", drop_path=0.5, **OPTIONS).fit(X, y)
    assert difference(model, again) == 0


def test_backbones_without_it_say_so():
    X, y = three_digits()
    for model in (make_model(drop_path=0.1), FineTuneClassifier("vgg11", weights=None, drop_path=0.1, **OPTIONS)):
        with pytest.raises(BackboneError, match="drop_path= needs an architecture"):
            model.set_params(strategy="fine_tuning").fit(X, y)


def test_strategies_that_keep_the_backbone_have_no_use_for_it():
    X, y = three_digits()
    plain = make_model("feature_extraction").fit(X, y)
    assert difference(plain, make_model("feature_extraction", drop_path=0.5).fit(X, y)) == 0
