"""Views: embeddings from any layer, pooled in any way, equal to what is computed by hand."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from small_views import FLOAT32, NAMES, SIZE, load
from torch import nn

from sktl.backbones import load_backbone
from sktl.embedding import embed
from sktl.exceptions import BackboneError
from sktl.inputs import open_rows


@pytest.fixture(scope="module")
def images():
    """Normalised pictures, as a network takes them."""
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def compute(backbone, images, **choice):
    view = backbone.feature_view(**choice)
    with torch.inference_mode():
        output = view.module(images)
    assert output.shape == (len(images), view.width)
    return output


def outputs_of(backbone, images, *names):
    """What layers give, copied before later layers write into it."""
    module, seen = copy.deepcopy(backbone.module), {}
    for name in names:
        keep = lambda module, inputs, output, name=name: seen.__setitem__(name, output.clone())  # noqa: E731
        module.get_submodule(name).register_forward_hook(keep)
    with torch.inference_mode():
        module(images)
    return [seen[name] for name in names]


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# Pooling --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_by_default_the_embedding_is_the_networks_own(name, images):
    backbone = load(name)
    with torch.inference_mode():
        torch.testing.assert_close(compute(backbone, images), backbone.module(images), rtol=0, atol=0)
    assert backbone.feature_view().key == backbone.fingerprint


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_maps_are_pooled_over_their_area(name, images):
    backbone = load(name)
    with torch.inference_mode():
        maps = backbone.module.forward_features(images)
    assert maps.ndim == 4
    mean, maximum = maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))
    assert_equal(compute(backbone, images, pooling="avg"), mean)
    assert_equal(compute(backbone, images, pooling="max"), maximum)
    assert_equal(compute(backbone, images, pooling="avgmax"), (mean + maximum) / 2)
    assert_equal(compute(backbone, images, pooling="none"), maps.flatten(1))
    with pytest.raises(BackboneError, match="pooling='cls' needs a backbone with a class token"):
        backbone.feature_view(pooling="cls")


def test_tokens_are_pooled_without_the_class_token(images):
    backbone = load("test_vit")
    with torch.inference_mode():
        tokens = backbone.module.forward_features(images)
    assert tokens.shape[1] == 1 + (SIZE // 16) ** 2
    mean, maximum = tokens[:, 1:].mean(dim=1), tokens[:, 1:].amax(dim=1)
    assert_equal(compute(backbone, images, pooling="cls"), tokens[:, 0])
    assert_equal(compute(backbone, images, pooling="avg"), mean)
    assert_equal(compute(backbone, images, pooling="max"), maximum)
    assert_equal(compute(backbone, images, pooling="avgmax"), (mean + maximum) / 2)
    assert_equal(compute(backbone, images, pooling="none"), tokens.flatten(1))


# Layers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "last"), [("test_resnet", "layer4"), ("test_convnext", "stages.3")])
def test_stages_are_counted_from_both_ends(name, last, images):
    backbone = load(name)
    n_stages = len(backbone.module.feature_info)
    (maps,) = outputs_of(backbone, images, last)
    for layer in (-1, n_stages - 1, np.int64(-1), last, [last], (-1,)):
        assert_equal(compute(backbone, images, layer=layer), maps.mean(dim=(2, 3)))
    assert_equal(compute(backbone, images, layer=-1, pooling="max"), maps.amax(dim=(2, 3)))
    for layer in (n_stages, -n_stages - 1):
        with pytest.raises(
            BackboneError, match=f"'layer' parameter is {layer}, and the backbone has {n_stages} stages"
        ):
            backbone.feature_view(layer=layer)


def test_layers_of_tokens(images):
    backbone = load("test_vit")
    first, last = outputs_of(backbone, images, "blocks.0", "blocks.5")
    assert_equal(compute(backbone, images, layer=-1), last[:, 0])  # the network's own way
    assert_equal(compute(backbone, images, layer=0, pooling="avg"), first[:, 1:].mean(dim=1))
    assert_equal(compute(backbone, images, layer="blocks.5", pooling="cls"), last[:, 0])
    assert_equal(compute(backbone, images, layer=0, pooling="none"), first.flatten(1))


@pytest.mark.parametrize("dynamic", [False, True])
def test_layers_before_the_class_token(dynamic, images):
    """What cuts the image up gives tokens without one, or maps with their channels last."""
    network = timm.create_model("test_vit", num_classes=0, img_size=SIZE, dynamic_img_size=dynamic)
    backbone = load_backbone(network, "pretrained", None, SIZE)
    (patches,) = outputs_of(backbone, images, "patch_embed")
    assert patches.ndim == (4 if dynamic else 3)
    patches = patches.reshape(len(images), (SIZE // 16) ** 2, -1)
    assert_equal(compute(backbone, images, layer="patch_embed"), patches.mean(dim=1))
    with pytest.raises(BackboneError, match="pooling='cls' needs"):
        backbone.feature_view(layer="patch_embed", pooling="cls")


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_concatenated_in_the_order_given(name, images):
    backbone = load(name)
    parts = [compute(backbone, images, layer=layer, pooling="avg") for layer in (-1, 0, -1)]
    assert_equal(compute(backbone, images, layer=[-1, 0, -1], pooling="avg"), torch.cat(parts, dim=1))


def test_stages_and_names_may_be_mixed(images):
    backbone = load("test_resnet")
    conv, stage = outputs_of(backbone, images, "layer4.0.conv1", "layer1")
    expected = torch.cat([conv.mean(dim=(2, 3)), stage.mean(dim=(2, 3))], dim=1)
    assert_equal(compute(backbone, images, layer=["layer4.0.conv1", 1]), expected)


@pytest.mark.parametrize("layer", ["bn1", "layer1.0.bn1", "layer2.0.bn1", "layer4.0.bn1"])
def test_layers_that_later_ones_write_into_are_seen_as_they_were(layer, images):
    """timm's activations and residual sums work in place."""
    backbone = load("test_resnet")
    (maps,) = outputs_of(backbone, images, layer)
    assert maps.min() < 0
    assert_equal(compute(backbone, images, layer=layer, pooling="none"), maps.flatten(1))


def test_what_comes_after_the_layers_is_not_computed(images):
    class Refusing(nn.Module):
        def forward(self, images):
            if len(images) == 3:
                raise AssertionError("computed")
            return images

    backbone = load("test_vit")
    view = backbone.feature_view(layer=[2, 0], pooling="avg")
    expected = compute(backbone, images, layer=[2, 0], pooling="avg")
    view.module.network.blocks[3].register_forward_pre_hook(lambda module, inputs: Refusing()(*inputs))
    with torch.inference_mode():
        assert_equal(view.module(images), expected)


def test_of_a_layer_that_is_used_twice_the_last_output_counts(images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Conv2d(3, 3, 1)
            self.end = nn.Conv2d(3, 2, 1)

        def forward(self, images):
            return self.end(self.mix(self.mix(images))).mean(dim=(2, 3))

    network = Twice().eval()
    backbone = load_backbone(network, image_size=SIZE)
    with torch.inference_mode():
        expected = network.mix(network.mix(images)).mean(dim=(2, 3))
    assert_equal(compute(backbone, images, layer="mix", pooling="avg"), expected)


def test_unknown_layers_are_named_with_those_that_come_close():
    backbone = load("test_resnet")
    with pytest.raises(BackboneError, match=r"no layer 'layer5'.*'layer[1-4]'"):
        backbone.feature_view(layer="layer5")
    with pytest.raises(BackboneError, match="no layer ''"):
        backbone.feature_view(layer="")
    with pytest.raises(BackboneError, match="'layer' parameter must be None, an int, a str, or a list"):
        backbone.feature_view(layer=[])
    with pytest.raises(BackboneError, match="'layer' parameter must be None, an int, a str, or a list"):
        backbone.feature_view(layer=[0, 1.5])


def test_a_layer_that_the_network_does_not_run_is_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, images):
            return self.used(images).mean((2, 3))

    with pytest.raises(BackboneError, match="layer 'idle' gives no tensor"):
        load_backbone(Idle(), "pretrained", None, SIZE).feature_view(layer="idle")


def test_views_leave_the_network_alone_and_share_its_weights(images):
    backbone = load("test_resnet")
    before = backbone.module(images)
    view = backbone.feature_view(layer=[0, -1], normalize=True, tta="hflip")
    assert not any(module._forward_hooks for module in backbone.module.modules())
    addresses = {parameter.data_ptr() for parameter in backbone.module.parameters()}
    assert {parameter.data_ptr() for parameter in view.module.parameters()} == addresses
    assert not any(parameter.requires_grad for parameter in view.module.parameters())
    assert not view.module.training
    torch.testing.assert_close(backbone.module(images), before, rtol=0, atol=0)
    assert backbone.feature_view(layer=[0, -1], normalize=True, tta="hflip") is view


# Own networks ---------------------------------------------------------------------------------------------------------


class Maps(nn.Module):
    """Gives maps, and keeps its layers under a name that sktl uses itself."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
        self.last = nn.Conv2d(5, 7, 1)

    def forward(self, images):
        return self.last(self.network(images))


class Vectors(Maps):
    def forward(self, images):
        return super().forward(images).mean(dim=(2, 3))


@pytest.mark.parametrize("kind", [Maps, Vectors])
def test_own_networks_layers_have_their_own_names(kind, images):
    torch.manual_seed(0)
    backbone = load_backbone(kind().eval(), "pretrained", None, SIZE)
    module = backbone.module.network if kind is Maps else backbone.module
    with torch.inference_mode():
        inner = module.network[1](module.network[0](images))
        maps = module.last(module.network(images))
    assert_equal(compute(backbone, images), maps.mean(dim=(2, 3)))
    assert_equal(compute(backbone, images, layer="network.1"), inner.mean(dim=(2, 3)))
    assert_equal(compute(backbone, images, layer="last", pooling="max"), maps.amax(dim=(2, 3)))
    with pytest.raises(BackboneError, match="does not know its stages; name a submodule"):
        backbone.feature_view(layer=0)
    if kind is Maps:
        assert_equal(compute(backbone, images, pooling="max"), maps.amax(dim=(2, 3)))
    else:
        with pytest.raises(BackboneError, match="pooling='max' needs a backbone that gives maps or tokens"):
            backbone.feature_view(pooling="max")


# Length and mirror images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_normalised_embeddings_have_length_one(name, images):
    backbone = load(name)
    found = compute(backbone, images, layer=-1, normalize=True)
    expected = compute(backbone, images, layer=-1)
    assert_equal(found.norm(dim=1), torch.ones(len(images)))
    assert_equal(found, expected / expected.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("name", NAMES)
def test_mirror_images_are_averaged(name, images):
    backbone = load(name)
    found = compute(backbone, images, tta="hflip")
    assert_equal(found, (compute(backbone, images) + compute(backbone, images.flip(-1))) / 2)
    assert_equal(found, compute(backbone, images.flip(-1), tta="hflip"))
    both = compute(backbone, images, tta="hflip", normalize=True)
    assert_equal(both, nn.functional.normalize(found, dim=1))


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224", "test_convnext"])
def test_openvino_computes_the_same(name, pictures):
    pytest.importorskip("openvino")
    backbone = load_backbone(name, None)
    view = backbone.feature_view(layer=[0, -1], pooling="avg", tta="hflip", normalize=True)
    rows = open_rows(pictures)
    found = embed(rows, view, **{**FLOAT32, "runtime": "openvino"})
    np.testing.assert_allclose(found, embed(rows, view, **FLOAT32), atol=1e-4)


# Threads --------------------------------------------------------------------------------------------------------------


def test_threads_do_not_see_each_others_layers(images):
    view = load("test_resnet").feature_view(layer=["act1", -1], tta="hflip")
    batches = [torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(k)) for k in range(24)]

    def run(batch):
        with torch.inference_mode():
            return view.module(batch)

    expected = [run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, batches))
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)
