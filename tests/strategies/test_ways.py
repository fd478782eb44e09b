"""What defines each way of transfer, checked on what it does to a network."""

import pickle
from functools import partial

import numpy as np
import pytest
import timm
import torch
from numpy.testing import assert_array_equal
from small_models import WAYS, difference, make_model, make_network, make_regressor, three_digits
from torch import nn

from sktl.backbones import load_backbone
from sktl.exceptions import MissingExtraError, StrategyError
from sktl.strategies import (
    L2SP,
    Batch,
    BitFit,
    FineTuning,
    GradualUnfreezing,
    LinearProbeThenFineTuning,
    LoRA,
    PartialFineTuning,
    Start,
    WiseFT,
)
from sktl.training import build_network, zero_linear


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("test_resnet", weights=None, image_size=32)


def initial_state():
    return load_backbone(make_network(), image_size=16).module.state_dict()


def changed(model):
    """Names of the backbone's weights and buffers that ``fit`` changed."""
    before, after = initial_state(), model.backbone_.module.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


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


# LoRA -----------------------------------------------------------------------------------------------------------------


class Dilated(nn.Module):
    """What additions have to cope with: dilation, groups, several linear layers of like names."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=2, dilation=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 8)
        self.block = nn.ModuleDict({"fc": nn.Linear(8, 8)})

    def forward(self, images):
        features = self.norm(self.depthwise(self.conv(images))).relu().mean((2, 3))
        return self.block["fc"](self.fc(features).relu())


@pytest.fixture(scope="module")
def dilated():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_backbone(Dilated(), image_size=16)


def perturb(network):
    """Stand in for training: give everything trainable another value."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


def test_lora_starts_as_the_pretrained_network(dilated):
    network = build_network(dilated, zero_linear(dilated.width, 3), LoRA(), seed=0)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.backbone(images), dilated.module(images), rtol=0, atol=0)


def test_lora_trains_additions_and_head_alone(dilated):
    network = build_network(dilated, zero_linear(dilated.width, 3), LoRA(rank=2), seed=0)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"head.weight", "head.bias"}
    adapted = {name.split(".lora_")[0] for name in trained if "lora_" in name}
    assert adapted == {"backbone.conv", "backbone.fc", "backbone.block.fc"}
    n_added = sum(value.numel() for name, value in network.named_parameters() if "lora_" in name)
    assert n_added == 2 * (3 * 9 + 8) + 2 * 2 * (8 + 8)


def assert_same_after_merge(network, strategy):
    """Let training end somewhere; what the network computes there is what it computes without additions."""
    perturb(network)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = network.backbone(images)
        strategy.finish(network)
        torch.testing.assert_close(network.backbone(images), expected, rtol=1e-4, atol=1e-5)


def test_lora_merged_computes_the_same_with_a_plain_network_of_low_rank_change(dilated, seeded):
    strategy = LoRA(rank=2)
    network = build_network(dilated, zero_linear(dilated.width, 3), strategy, seed=0)
    assert_same_after_merge(network, strategy)
    before, after = dilated.module.state_dict(), network.backbone.state_dict()
    assert before.keys() == after.keys()
    assert type(network.backbone.conv) is nn.Conv2d
    change = after["fc.weight"] - before["fc.weight"]
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"conv.weight", "fc.weight", "block.fc.weight"}


@pytest.mark.parametrize(
    ("target", "expected"),
    [("linear", {"fc", "block.fc"}), ("conv", {"conv"}), (["block.fc"], {"block.fc"}), (["fc"], {"fc", "block.fc"})],
)
def test_lora_adds_to_the_layers_it_is_told(dilated, target, expected):
    network = build_network(dilated, zero_linear(dilated.width, 3), LoRA(target_modules=target), seed=0)
    names = {name.split(".lora_")[0] for name, _ in network.backbone.named_parameters() if "lora_" in name}
    assert names == expected


def test_lora_without_a_layer_to_add_to_is_an_error(dilated):
    with pytest.raises(StrategyError, match="finds no layer in the backbone"):
        build_network(dilated, zero_linear(dilated.width, 3), LoRA(target_modules=["depthwise"]), seed=0)


class Shared(nn.Module):
    """Layers whose weight is used twice, or computed from another one, beside one of which neither holds."""

    def __init__(self):
        super().__init__()
        self.alone = nn.Conv2d(3, 8, 3)
        self.twice = self.again = nn.Linear(8, 8)
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.one.weight
        self.scaled = nn.utils.spectral_norm(nn.Linear(8, 8))

    def forward(self, images):
        features = self.alone(images).mean((2, 3))
        for layer in (self.twice, self.again, self.one, self.other, self.scaled):
            features = layer(features.relu())
        return features


def test_lora_leaves_weights_alone_that_are_not_of_one_layer(seeded):
    strategy = LoRA(rank=2)
    backbone = load_backbone(Shared(), image_size=16)
    network = build_network(backbone, zero_linear(backbone.width, 3), strategy, seed=0)
    assert_same_after_merge(network, strategy)
    assert set(network.low_rank) == {"alone.weight"}


class TakesWeights(nn.Module):
    """Calls one layer and takes the other's weight, as the attention of BEiT, EVA and Swin V2 does with its biases."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.qkv = nn.Linear(8, 8, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(8))

    def forward(self, images):
        return nn.functional.linear(self.conv(images).mean((2, 3)).relu(), weight=self.qkv.weight, bias=self.q_bias)


def test_lora_reaches_layers_whose_weight_is_taken_and_not_called(seeded):
    strategy = LoRA(rank=2, target_modules=["qkv"])
    backbone = load_backbone(TakesWeights(), image_size=16)
    network = build_network(backbone, zero_linear(backbone.width, 3), strategy, seed=0)
    images = torch.randn(2, 3, 16, 16)
    gradient = torch.autograd.grad(network.backbone(images).sum(), network.backbone.qkv.lora_B.default.weight)[0]
    assert gradient.abs().max() > 0
    assert_same_after_merge(network, strategy)


def test_lora_trains_the_attention_of_beit():
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("beit_base_patch16_224", num_classes=0, **settings)
    before = {name: value.clone() for name, value in network.named_parameters()}
    model = make_model(LoRA(target_modules=["qkv"]), backbone=network).fit(*three_digits())
    moved = {name for name, value in model.backbone_.module.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"blocks.0.attn.qkv.weight"}


def test_lora_start_is_private_and_repeatable(dilated):
    before = torch.get_rng_state()
    first, second, other = (
        build_network(dilated, zero_linear(dilated.width, 3), LoRA(), seed=seed).backbone.state_dict()
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    name = "fc.lora_A.default.weight"
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], other[name])


def test_lora_in_fit_leaves_a_plain_network():
    model = make_model(LoRA(rank=2, dropout=0.1), max_epochs=2).fit(*three_digits())
    assert changed(model) == {"stem.0.weight", "body.0.weight"}
    assert model.trainable_parameters_ == 2 * (3 * 9 + 8) + 2 * (8 * 9 + 16) + 3 * 17


def test_lora_says_how_to_get_peft(dilated, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"strategy='lora' needs the package 'peft'.*sktl\[peft\]"):
        build_network(dilated, zero_linear(dilated.width, 3), LoRA(), seed=0)


# BitFit ---------------------------------------------------------------------------------------------------------------

BIASES = {"stem.0.bias", "stem.1.bias", "body.0.bias", "body.1.bias"}
NORMS = {"stem.1.weight", "stem.1.bias", "body.1.weight", "body.1.bias"}


@pytest.mark.parametrize(("train", "expected"), [("bias", BIASES), ("norm", NORMS), ("bias_and_norm", BIASES | NORMS)])
def test_bitfit_changes_what_it_names_and_nothing_else(train, expected):
    assert changed(make_model(BitFit(train=train), max_epochs=2).fit(*three_digits())) == expected


class OwnRMSNorm(nn.Module):
    """As networks define it that are older than torch's: timm's AIMv2, encoders of transformers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6) * self.weight


@pytest.mark.parametrize("norm", [OwnRMSNorm, partial(timm.layers.RmsNorm, 8), partial(nn.RMSNorm, 8)])
def test_bitfit_knows_normalisation_that_is_not_torchs(norm):
    network = nn.Sequential(nn.Conv2d(3, 8, 8, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm())
    prepared = build_network(load_backbone(network, image_size=16), zero_linear(8, 3), BitFit(train="norm"), seed=0)
    assert [name for name, value in prepared.backbone.named_parameters() if value.requires_grad] == ["3.weight"]


def test_bitfit_without_anything_to_train_is_an_error():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, bias=False)

        def forward(self, images):
            return self.conv(images).mean((2, 3))

    backbone = load_backbone(Plain(), image_size=16)
    with pytest.raises(StrategyError, match="BitFit\\(train='bias'\\) finds nothing to train"):
        build_network(backbone, zero_linear(backbone.width, 3), BitFit(), seed=0)


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
