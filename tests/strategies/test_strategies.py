"""Strategies as values: named, copied, checked, and searched like any scikit-learn parameter."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from sktl import strategies
from sktl.backbones import OriginalHead, load_backbone
from sktl.exceptions import StrategyError
from sktl.strategies import STRATEGIES, FineTuning, PartialFineTuning, Strategy, resolve_strategy
from sktl.training import build_network, zero_linear


@pytest.fixture(scope="module")
def backbone():
    backbone = load_backbone("test_resnet", weights=None, image_size=32)
    return backbone.with_original_head(OriginalHead.from_module(nn.Linear(backbone.width, 4), np.arange(4)))


@pytest.mark.parametrize("name", STRATEGIES)
def test_name_gives_an_object_with_default_parameters(name):
    strategy = resolve_strategy(name)
    assert isinstance(strategy, Strategy)
    assert repr(strategy) == f"{type(strategy).__name__}()"
    assert type(strategy).__name__ in strategies.__all__


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_clones_with_its_parameters(name):
    strategy = STRATEGIES[name]()
    parameters = {key: value / 2 if isinstance(value, float) else 2 for key, value in strategy.get_params().items()}
    strategy.set_params(**parameters)
    assert clone(strategy).get_params() == parameters


def test_object_is_copied():
    mine = FineTuning(backbone_lr_scale=0.5)
    assert resolve_strategy(mine) is not mine
    assert resolve_strategy(mine).backbone_lr_scale == 0.5


@pytest.mark.parametrize(
    ("name", "match"), [("fine tuning", "'fine_tuning'"), ("from_scatch", "'from_scratch'"), ("LP_FT", "'lp_ft'")]
)
def test_unknown_name_gets_a_close_match(name, match):
    with pytest.raises(StrategyError, match=f"must be one of .* got '{name}' instead. Did you mean {match}"):
        resolve_strategy(name)


@pytest.mark.parametrize("value", [None, 3, FineTuning])
def test_what_is_no_strategy_is_refused(value):
    with pytest.raises(StrategyError, match="'strategy' parameter must be one of"):
        resolve_strategy(value)


@pytest.mark.parametrize("n_groups", [0, -1, 1.5, "all"])
def test_parameter_out_of_range_is_named(n_groups):
    with pytest.raises(ValueError, match="'n_groups' parameter of PartialFineTuning must be an int"):
        resolve_strategy(PartialFineTuning(n_groups=n_groups))


@pytest.mark.parametrize("n_groups", [1, 2, 99])
def test_partial_counts_groups_from_the_output(backbone, n_groups):
    network = build_network(backbone, zero_linear(backbone.width, 3), PartialFineTuning(n_groups=n_groups), seed=0)
    expected = {name for group in backbone.layer_groups[-n_groups:] for name in group}
    trained = {name for name, parameter in network.backbone.named_parameters() if parameter.requires_grad}
    assert trained == expected
    assert all(parameter.requires_grad for parameter in network.head.parameters())


def test_partial_needs_parameters():
    class Mean(nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    network = nn.Module()
    network.backbone, network.layer_groups = Mean(), []
    with pytest.raises(StrategyError, match="needs a backbone with parameters"):
        PartialFineTuning().prepare(network)


@pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if strategy.trains_backbone])
def test_each_parameter_is_in_one_group(backbone, name):
    network = build_network(backbone, zero_linear(backbone.width, 3), resolve_strategy(name), seed=0)
    groups = resolve_strategy(name).param_groups(network, lr=0.5)
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    head = next(group for group in groups if group["params"][0][0].startswith("head."))
    assert head["lr"] == 0.5


def test_backbone_may_learn_slower(backbone):
    network = build_network(backbone, zero_linear(backbone.width, 3), FineTuning(), seed=0)
    rates = [group["lr"] for group in FineTuning(backbone_lr_scale=0.1).param_groups(network, lr=0.5)]
    assert rates == [pytest.approx(0.05), 0.5]


def test_from_scratch_is_another_start_for_each_seed(backbone):
    def start(seed):
        return build_network(
            backbone, zero_linear(backbone.width, 3), resolve_strategy("from_scratch"), seed=seed
        ).backbone.state_dict()

    weight = "layer1.0.conv1.weight"
    assert torch.equal(start(1)[weight], start(1)[weight])
    assert not torch.equal(start(1)[weight], start(2)[weight])
    assert not torch.equal(start(1)[weight], backbone.module.state_dict()[weight])
