"""Views: embeddings from any layer, pooled in any way, equal to what is computed by hand."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from torch import nn

from sktl import PretrainedFeatureTransformer
from sktl.backbones import load_backbone
from sktl.embedding import clear_cache, default_store, embed
from sktl.exceptions import BackboneError
from sktl.inputs import open_rows

SIZE = 64
NAMES = ("test_resnet", "test_vit", "test_convnext")
FLOAT32 = {"device": "cpu", "dtype": "float32", "runtime": "torch"}


def load(name):
    return load_backbone(name, None, {"crop_pct": 1.0}, SIZE)  # pictures of this size are used as they are


@pytest.fixture(scope="module")
def images():
    """Normalised pictures, as a network takes them."""
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pictures(rng):
    return rng.integers(0, 256, (21, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _fresh_caches():
    default_store().clear()
    clear_cache()


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


# Keys -----------------------------------------------------------------------------------------------------------------

CHOICES = [
    {},
    {"pooling": "max"},
    {"pooling": "none"},
    {"layer": -1},
    {"layer": 0},
    {"layer": "layer1"},
    {"layer": [0, 1]},
    {"layer": [1, 0]},
    {"layer": 0, "pooling": "max"},
    {"normalize": True},
    {"tta": "hflip"},
    {"tta": "hflip", "normalize": True},
]


def test_every_choice_has_a_key_of_its_own():
    backbone = load("test_resnet")
    keys = [backbone.feature_view(**choice).key for choice in CHOICES]
    assert len(set(keys)) == len(CHOICES)
    again = load("test_resnet")
    assert [again.feature_view(**choice).key for choice in CHOICES] == keys
    assert backbone.feature_view(layer=0).key == backbone.feature_view(layer=np.int64(0)).key
    assert backbone.feature_view(layer=[0, 1]).key == backbone.feature_view(layer=(0, 1)).key
    assert load_backbone("test_resnet", None, None, 96).feature_view(layer=0).key not in keys


def test_stores_never_mix_views(pictures, tmp_path):
    for _ in range(2):  # filled, then read
        for choice in CHOICES:
            model = PretrainedFeatureTransformer(
                "test_resnet", weights=None, image_size=SIZE, memory=tmp_path, **FLOAT32, **choice
            )
            alone = model.set_params(memory=None, cache_bytes=0).fit_transform(pictures)
            stored = model.set_params(memory=tmp_path, cache_bytes=2**20).fit_transform(pictures)
            np.testing.assert_array_equal(stored, alone, err_msg=str(choice))
        default_store().clear()


# Through the engine ---------------------------------------------------------------------------------------------------

ENGINE_CHOICES = [
    ("test_resnet", {"layer": "conv1.0"}),  # a convolution that BatchNorm follows
    ("test_resnet", {"layer": "conv1.1"}),  # that BatchNorm, into which an activation writes
    ("test_resnet", {"layer": ["layer1", -1], "pooling": "avgmax"}),
    ("test_resnet", {"normalize": True, "tta": "hflip"}),
    ("test_vit", {"layer": [0, 2, "norm"], "pooling": "avg"}),
    ("test_vit", {"layer": -1, "pooling": "cls", "normalize": True}),
    ("test_convnext", {"layer": [-2, -1], "pooling": "max", "tta": "hflip"}),
]


@pytest.mark.parametrize(("name", "choice"), ENGINE_CHOICES)
def test_engine_computes_what_the_view_says(name, choice, pictures):
    """Whatever it fuses, in whatever precision, and with several passes at once."""
    backbone = load(name)
    view = backbone.feature_view(**choice)
    mean, std = (torch.tensor(backbone.data_config[key]) for key in ("mean", "std"))
    inputs = ((torch.from_numpy(pictures) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = view.module(inputs).numpy()
    rows = open_rows(pictures)
    exact = embed(rows, view, batch_size=2, **FLOAT32)
    np.testing.assert_allclose(exact, expected, rtol=1e-3, atol=1e-4 * abs(expected).max())
    several = embed(rows, view, batch_size=2, n_threads=4, **FLOAT32)
    np.testing.assert_array_equal(several, embed(rows, view, batch_size=2, n_threads=1, **FLOAT32))
    low = embed(rows, view, device="cpu", dtype="bfloat16", runtime="torch")
    cosine = (low * expected).sum(1) / np.linalg.norm(low, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.999
    if choice.get("normalize"):
        np.testing.assert_allclose(np.linalg.norm(low, axis=1), 1, atol=1e-6)


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


# Through the transformer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "width"),
    [
        ({}, 96),
        ({"layer": 0}, 32),
        ({"layer": ["layer2", -1]}, 48 + 96),
        ({"layer": 0, "pooling": "none"}, 32 * (SIZE // 2) ** 2),
        ({"layer": (2,), "normalize": True, "tta": "hflip"}, 48),
    ],
)
def test_names_and_width_are_right(choice, width, pictures):
    model = PretrainedFeatureTransformer("test_resnet", weights=None, image_size=SIZE, **FLOAT32, **choice)
    frame = model.set_output(transform="pandas").fit_transform(pictures[:2])
    assert isinstance(frame, pd.DataFrame)
    assert frame.shape == (2, width)
    assert list(frame.columns) == list(model.get_feature_names_out())
    assert frame.columns[-1] == f"pretrainedfeaturetransformer{width - 1}"


@pytest.mark.parametrize("choice", [{"layer": "no such"}, {"layer": 99}, {"layer": []}, {"pooling": "cls"}])
def test_what_does_not_fit_is_said_by_fit(choice, pictures):
    model = PretrainedFeatureTransformer("test_resnet", weights=None, image_size=SIZE, **choice)
    with pytest.raises(BackboneError):
        model.fit(pictures)
