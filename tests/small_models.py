"""A model that trains in a fraction of a second, for the tests of what training does."""

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from sktl import FineTuneClassifier, FineTuneRegressor
from sktl.backbones import load_backbone
from sktl.strategies import STRATEGIES

DEFAULTS = {"image_shape": (8, 8), "image_size": 16, "max_epochs": 1, "random_state": 0, "dtype": "float32"}

# The named strategies for which any backbone will do.
WAYS = {name: strategy for name, strategy in STRATEGIES.items() if not strategy.needs_original_head}


class Net(nn.Module):
    """A network of a user's own that trains in no time, with batch normalisation and dropout."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.drop = nn.Dropout(0.2)

    def forward(self, images):
        return self.drop(self.body(self.stem(images)).mean(dim=(2, 3)))


def make_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def make_model(strategy="fine_tuning", *, backbone=None, **parameters):
    """A model on a small network of one's own: a fit takes a fraction of a second."""
    return FineTuneClassifier(make_network() if backbone is None else backbone, strategy, **{**DEFAULTS, **parameters})


def go_on_from(model, strategy, **parameters):
    """A model whose backbone is that of a fitted one."""
    return make_model(strategy, **parameters).set_params(backbone=model)


def make_regressor(strategy="fine_tuning", **parameters):
    """The same for numbers."""
    return FineTuneRegressor(make_network(), strategy, **{**DEFAULTS, **parameters})


def weights_of(model):
    state = model.backbone_.module.state_dict()
    return {**state, **{f"head.{name}": value for name, value in model.net_.module_.head.state_dict().items()}}


def difference(first, second):
    first, second = weights_of(first), weights_of(second)
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@cache
def three_digits():
    """Forty-five handwritten zeros, ones and twos, flattened; read-only."""
    X, y = load_digits(return_X_y=True)
    rows = np.flatnonzero(y[:160] < 3)[:45]
    X, y = X[rows], y[rows]
    X.flags.writeable = y.flags.writeable = False
    return X, y


def initial_state():
    return load_backbone(make_network(), image_size=16).module.state_dict()


def changed(model):
    """Names of the backbone's weights and buffers that ``fit`` changed."""
    before, after = initial_state(), model.backbone_.module.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def perturb(network):
    """Stand in for training: give everything trainable another value."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
