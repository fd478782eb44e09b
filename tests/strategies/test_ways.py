"""What defines each way of transfer, checked on what it does to a network."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from small_models import (
    WAYS,
    changed,
    difference,
    initial_state,
    make_model,
    make_regressor,
    perturb,
    three_digits,
)
from torch import nn

from sktl.backbones import load_backbone
from sktl.exceptions import StrategyError
from sktl.strategies import (
    L2SP,
    Batch,
    FineTuning,
    GradualUnfreezing,
    LinearProbeThenFineTuning,
    PartialFineTuning,
    Start,
    WiseFT,
)
from sktl.training import build_network, zero_linear


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("test_resnet", weights=None, image_size=32)


def rates(network, strategy):
    """The learning rate of each parameter, in units of the head's."""
    return {name: group["lr"] for group in strategy.param_groups(network, lr=1.0) for name, _ in group["params"]}


# Layer-wise rates, named stages ---------------------------------------------------------------------------------------


def test_layer_decay_multiplies_from_group_to_group(backbone):
    strategy = FineTuning(backbone_lr_scale=0.5, layer_decay=0.1)
    network = build_network(backbone, zero_linear(backbone.width, 3), strategy, seed=0)
    found = rates(network, strategy)
    n_groups = len(network.layer_groups)
    for depth, group in enumerate(network.layer_groups):
        assert [found[f"backbone.{name}"] for name in group] == pytest.approx(
            [0.5 * 0.1 ** (n_groups - depth)] * len(group)
        )
    assert found["head.weight"] == 1.0


def test_layer_decay_of_one_is_none(backbone):
    network = build_network(backbone, zero_linear(backbone.width, 3), FineTuning(), seed=0)
    assert rates(network, FineTuning(layer_decay=1.0)) == rates(network, FineTuning())


def test_partial_trains_a_named_stage_and_what_follows(backbone):
    network = build_network(backbone, zero_linear(backbone.width, 3), PartialFineTuning(from_stage="layer3"), seed=0)
    trained = {name.split(".")[0] for name, value in network.backbone.named_parameters() if value.requires_grad}
    frozen = {name.split(".")[0] for name, value in network.backbone.named_parameters() if not value.requires_grad}
    assert trained == {"layer3", "layer4"}
    assert frozen == {"conv1", "bn1", "layer1", "layer2"}


def test_partial_may_start_inside_a_stage(backbone):
    strategy = PartialFineTuning(from_stage="layer4.0.conv2")
    network = build_network(backbone, zero_linear(backbone.width, 3), strategy, seed=0)
    trained = [name for name, value in network.backbone.named_parameters() if value.requires_grad]
    assert trained[0] == "layer4.0.conv2.weight"
    assert not any("conv1" in name for name in trained)


@pytest.mark.parametrize(("stage", "hint"), [("layer5", "Did you mean .*'layer4'"), ("blocks", "It has .*'layer1'")])
def test_partial_explains_an_unknown_stage(backbone, stage, hint):
    with pytest.raises(StrategyError, match=f"no module '{stage}' with parameters.*{hint}"):
        build_network(backbone, zero_linear(backbone.width, 3), PartialFineTuning(from_stage=stage), seed=0)


# Gradual unfreezing ---------------------------------------------------------------------------------------------------


def test_gradual_unfreezing_goes_from_the_top_down(backbone):
    strategy = GradualUnfreezing(epochs_per_group=2)
    network = build_network(backbone, zero_linear(backbone.width, 3), strategy, seed=0)
    for epoch in (0, 1, 2, 3, 4, 99):
        strategy.on_epoch_begin(network, epoch)
        expected = {name for group in network.layer_groups[-(epoch // 2 + 1) :] for name in group}
        assert {name for name, value in network.backbone.named_parameters() if value.requires_grad} == expected


def test_gradual_unfreezing_in_fit_moves_a_group_more_per_epoch():
    one, two = (make_model("gradual_unfreezing", max_epochs=n).fit(*three_digits()) for n in (1, 2))
    top = {"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"}
    assert changed(one) == top
    assert changed(two) == top | {name.replace("body", "stem") for name in top}
    assert one.trainable_parameters_ < two.trainable_parameters_


def test_gradual_unfreezing_has_discriminative_rates(backbone):
    strategy = GradualUnfreezing(layer_decay=0.5, backbone_lr_scale=0.2)
    network = build_network(backbone, zero_linear(backbone.width, 3), strategy, seed=0)
    found = rates(network, strategy)
    top, below = (found[f"backbone.{network.layer_groups[place][0]}"] for place in (-1, -2))
    assert (top, below) == (pytest.approx(0.2), pytest.approx(0.1))


# L2-SP ----------------------------------------------------------------------------------------------------------------


def test_l2sp_penalty_is_the_papers_formula(backbone, seeded):
    strategy = L2SP(alpha=0.4, beta=0.3)
    network = build_network(backbone, zero_linear(backbone.width, 3), strategy, seed=0)
    initial = dict(backbone.module.named_parameters())
    strategy.on_train_begin(network, Start(pretrained_weights=initial))
    perturb(network)
    batch = Batch(None, None, None, None)
    penalty = strategy.penalty(network, batch, torch.zeros(1))
    penalty.backward()
    moved = dict(network.backbone.named_parameters())
    distance = sum(float((moved[name] - initial[name]).detach().double().square().sum()) for name in moved)
    size = sum(float(value.detach().double().square().sum()) for value in network.head.parameters())
    assert penalty.item() == pytest.approx(0.2 * distance + 0.15 * size, rel=1e-4)
    kernel = moved["layer1.0.conv1.weight"]
    torch.testing.assert_close(kernel.grad, 0.4 * (kernel - initial["layer1.0.conv1.weight"]).detach())
    torch.testing.assert_close(network.head.weight.grad, 0.3 * network.head.weight.detach())


def test_l2sp_stays_nearer_to_the_start():
    def distance(alpha):
        sgd = {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9}
        model = make_model(L2SP(alpha=alpha), max_epochs=10, learning_rate=0.1, net_params=sgd).fit(*three_digits())
        state = model.backbone_.module.state_dict()
        return sum(float((state[name] - start).double().square().sum()) for name, start in initial_state().items())

    assert distance(10.0) < 0.7 * distance(0.0)


def test_l2sp_turns_weight_decay_off():
    few = three_digits()
    weak, strong = (make_model("l2_sp", weight_decay=value).fit(*few) for value in (0.0, 10.0))
    np.testing.assert_array_equal(weak.predict_proba(few[0]), strong.predict_proba(few[0]))


# WiSE-FT --------------------------------------------------------------------------------------------------------------


def all_weights(model):
    return {**model.backbone_.module.state_dict(), **model.net_.module_.head.state_dict(prefix="head.")}


def test_wise_ft_lies_between_linear_probe_and_fine_tuning():
    few = three_digits()
    tuned = all_weights(make_model(LinearProbeThenFineTuning(), max_epochs=2).fit(*few))
    probed = all_weights(make_model("feature_extraction").fit(*few))
    none, part, all_ = (all_weights(make_model(WiseFT(alpha=alpha), max_epochs=2).fit(*few)) for alpha in (0, 0.25, 1))
    for name, start in probed.items():
        assert torch.equal(none[name], start), name
        assert torch.equal(all_[name], tuned[name]), name
        if start.is_floating_point():
            torch.testing.assert_close(part[name], 0.75 * start + 0.25 * tuned[name])


@pytest.mark.parametrize(("n_per_class", "alpha"), [(5, 0.5), (30, 0.6), (180, 0.9)])
def test_wise_ft_goes_further_the_more_rows_there_are(n_per_class, alpha):
    X = np.random.default_rng(0).integers(0, 17, (2 * n_per_class, 64))
    model = make_model("wise_ft", max_epochs=1).fit(X, np.arange(len(X)) % 2)
    assert model.strategy_.alpha_ == pytest.approx(alpha)
    assert pickle.loads(pickle.dumps(model)).strategy_.alpha_ == model.strategy_.alpha_


def test_each_row_speaks_for_every_column():
    X, y = three_digits()
    labels = np.stack([y == label for label in (0, 1, 2)], axis=1).astype(int)
    for make, targets in ((make_regressor, y), (make_regressor, labels), (make_model, labels)):
        assert make("wise_ft", max_epochs=1).fit(X, targets).strategy_.alpha_ == pytest.approx(45 / 65)


def test_wise_ft_ends_where_training_does_when_rows_come_in_parts():
    images, labels = three_digits()
    wise, tuned = (make_model(name).partial_fit(images, labels, np.unique(labels)) for name in ("wise_ft", "lp_ft"))
    assert_array_equal(wise.predict_proba(images), tuned.predict_proba(images))
    assert pickle.loads(pickle.dumps(wise)).strategy_.alpha_ == 1


def test_wise_ft_keeps_what_an_earlier_fit_has_learnt():
    few = three_digits()
    wise, tuned = (make_model("lp_ft", max_epochs=1, warm_start=True).fit(*few) for _ in range(2))
    wise.set_params(strategy="wise_ft").fit(*few)
    assert difference(wise, tuned) > 0
    assert difference(wise, tuned.fit(*few)) == 0


def test_statistics_of_a_head_go_back_with_its_weights():
    head = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    start, half, end = (
        dict(
            make_model(WiseFT(alpha=alpha), head=head, max_epochs=2)
            .fit(*three_digits())
            .net_.module_.head.named_buffers()
        )
        for alpha in (0, 0.5, 1)
    )
    torch.testing.assert_close(half["1.running_mean"], (start["1.running_mean"] + end["1.running_mean"]) / 2)
    assert not torch.equal(start["1.running_mean"], end["1.running_mean"])


# What all have in common ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, strategy in WAYS.items() if strategy.trains_backbone])
def test_nothing_taken_down_for_training_is_kept(name):
    model = make_model(name, max_epochs=1).fit(*three_digits())
    learned = {"alpha_"} if name == "wise_ft" else set()
    assert vars(model.strategy_).keys() == model.strategy_.get_params().keys() | learned
