"""What defines the ways that train few weights, checked on what they do to a network."""

from functools import partial

import pytest
import timm
import torch
from small_models import changed, make_model, perturb, three_digits
from torch import nn

from sktl.backbones import load_backbone
from sktl.exceptions import MissingExtraError, StrategyError
from sktl.strategies import BitFit, LoRA
from sktl.training import build_network, zero_linear

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
