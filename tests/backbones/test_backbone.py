"""A loaded backbone: its width, data config, layer groups, fingerprint, and its way through a pickle."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from torch import nn

from sktl.backbones import Backbone, build_from_recipe, fingerprint, layer_groups, load_backbone, reset_parameters
from sktl.exceptions import BackboneError

SIZE = 32
NAMES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "mobilenetv3_small_050")


class Net(nn.Module):
    """A small network of a user's own, with all kinds of state."""

    def __init__(self, n_dims=2, width=5):
        super().__init__()
        self.n_dims = n_dims
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Conv2d(4, width, 3, padding=1)
        self.register_buffer("gain", torch.full((1,), 2.0))
        self.register_buffer("shift", torch.linspace(0, 1, width), persistent=False)

    def forward(self, images):
        maps = self.body(self.stem(images)) * self.gain + self.shift[:, None, None]
        return maps if self.n_dims == 4 else maps.flatten(2).mean(2) if self.n_dims == 2 else maps.flatten(2)


class Tied(nn.Module):
    """Two layers that share their weights."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, images):
        return self.second(self.first(images.mean(dim=(2, 3))))


class Activated(nn.Module):
    """Its settings are a function, a list and a private number."""

    def __init__(self, function=torch.relu, factors=(1.0,), power=1, offset=0.0):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.function = function
        self.factors = list(factors)
        self._power = power
        self.register_buffer("offset", torch.tensor(offset), persistent=False)

    def forward(self, images):
        return self.function(self.layer(images)).mean(dim=(2, 3)) ** self._power * sum(self.factors) + self.offset


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture(autouse=True)
def same_generator():
    with torch.random.fork_rng():
        yield


def images(n=2, size=SIZE):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def run(module, batch):
    with torch.inference_mode():
        return module(batch)


# Named backbones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_width_is_that_of_the_output(name):
    backbone = load_backbone(name, weights=None, image_size=SIZE)
    assert run(backbone.module, images()).shape == (2, backbone.width)


def test_width_may_differ_from_what_timm_calls_features():
    backbone = load_backbone("mobilenetv3_small_050", weights=None, image_size=SIZE)
    assert backbone.width == 1024 != backbone.module.num_features


@pytest.mark.parametrize("name", ["sktl/tiny", *NAMES])
def test_network_is_frozen_and_in_eval_mode(name):
    backbone = load_backbone(name, weights=None, image_size=SIZE)
    assert not any(module.training for module in backbone.module.modules())
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())


@pytest.mark.parametrize("name", ["sktl/tiny", *NAMES])
def test_layer_groups_hold_each_parameter_once_in_order(name):
    backbone = load_backbone(name, weights=None, image_size=SIZE)
    names = [parameter for group in backbone.layer_groups for parameter in group]
    assert len(backbone.layer_groups) > 2
    assert all(backbone.layer_groups)
    assert sorted(names) == sorted(name for name, _ in backbone.module.named_parameters())
    first = next(name for name, _ in backbone.module.named_parameters() if name not in ("cls_token", "pos_embed"))
    assert first in backbone.layer_groups[0]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("size", [48, (32, 64), np.int64(48)])
def test_image_size_holds_for_fixed_and_free_networks(name, size):
    backbone = load_backbone(name, weights=None, image_size=size)
    height, width = size if isinstance(size, tuple) else (int(size), int(size))
    assert backbone.data_config["input_size"] == [3, height, width]
    batch = torch.rand(1, 3, height, width)
    assert run(backbone.module, batch).shape == (1, backbone.width)
    assert load_backbone(name, weights=None).data_config["input_size"] == [3, 160, 160]


@pytest.mark.parametrize("size", [(32,), (32.0, 32.0), (3, 32, 32), (0, 32)])
def test_image_sizes_that_no_image_has_are_refused(size):
    with pytest.raises(BackboneError, match=r"'image_size' parameter must be \(height, width\) or an int, got \("):
        load_backbone("sktl/tiny", image_size=size)


def test_data_config_is_checked_at_once_and_may_hold_arrays():
    with pytest.raises(BackboneError, match="'crop_pct' of a data config must be above 0"):
        load_backbone("sktl/tiny", data_config={"crop_pct": 0})
    backbone = load_backbone("sktl/tiny", data_config={"mean": np.array([0.5, 0.4, 0.25])})
    assert backbone.data_config["mean"] == [0.5, 0.4, 0.25]


def test_image_size_too_small_for_the_network_is_explained():
    with pytest.raises(BackboneError, match=r"test_vit.*image_size="):
        load_backbone("test_vit", weights=None, image_size=4)


def test_data_config_is_overridden_entry_by_entry():
    plain = load_backbone("test_resnet", weights=None, image_size=SIZE)
    changed = load_backbone("test_resnet", weights=None, image_size=SIZE, data_config={"mean": (0.0, 0.0, 0.0)})
    assert changed.data_config == {**plain.data_config, "mean": [0.0, 0.0, 0.0]}


# Fingerprints ---------------------------------------------------------------------------------------------------------


def test_fingerprint_depends_on_weights_and_data_config():
    keywords = {"weights": None, "image_size": SIZE}
    plain = load_backbone("test_resnet", **keywords)
    state = plain.module.state_dict()
    state["conv1.0.weight" if "conv1.0.weight" in state else next(iter(state))].flatten()[0]
    nudged = {name: value.clone() for name, value in state.items()}
    next(value for value in nudged.values() if value.is_floating_point()).flatten()[0] += 1e-6
    others = [
        load_backbone("test_resnet", weights=nudged, image_size=SIZE),
        load_backbone("test_resnet", data_config={"std": (1.0, 1.0, 1.0)}, **keywords),
        load_backbone("test_resnet", weights=None, image_size=48),
        load_backbone("test_resnet", data_config={"crop_pct": 0.5}, **keywords),
    ]
    assert len({plain.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert load_backbone("test_resnet", weights=dict(state), image_size=SIZE).fingerprint == plain.fingerprint
    assert plain.view.key == plain.fingerprint


def test_fingerprint_is_the_same_in_another_process():
    code = (
        "from sktl.backbones import load_backbone;"
        f"print(load_backbone('sktl/tiny').fingerprint,"
        f"load_backbone('test_vit', weights=None, image_size={SIZE}).fingerprint)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found == [
        load_backbone("sktl/tiny").fingerprint,
        load_backbone("test_vit", weights=None, image_size=SIZE).fingerprint,
    ]


@pytest.mark.parametrize(
    "settings",
    [{"function": torch.tanh}, {"factors": (1.0, 2.0)}, {"power": 2}, {"offset": 1.0}],
    ids=["function", "list", "private", "non-persistent buffer"],
)
def test_fingerprint_knows_what_a_network_computes(settings):
    """Else embeddings of one network would be served for another."""
    torch.manual_seed(0)
    plain = Activated()
    other = Activated(**settings)
    other.load_state_dict(plain.state_dict())
    first, second = (load_backbone(network, image_size=SIZE) for network in (plain, other))
    assert not torch.equal(run(first.module, images()), run(second.module, images()))
    assert first.fingerprint != second.fingerprint
    assert load_backbone(copy.deepcopy(plain), image_size=SIZE).fingerprint == first.fingerprint


# A network of one's own -----------------------------------------------------------------------------------------------


def test_own_network_is_copied_and_left_as_it_is(net):
    net.train()
    before = copy.deepcopy(net.state_dict())
    backbone = load_backbone(net, image_size=SIZE)
    assert backbone.name == "Net"
    assert backbone.module is not net
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        net.body.weight.zero_()
    assert backbone.module.body.weight.abs().sum() > 0


def test_own_network_in_eval_mode_gives_its_own_output(net):
    backbone = load_backbone(net, image_size=SIZE)
    torch.testing.assert_close(run(backbone.module, images()), run(net.eval(), images()), rtol=0, atol=0)
    assert backbone.width == 5


def test_own_networks_feature_maps_are_averaged(net):
    net.n_dims = 4
    backbone = load_backbone(net, image_size=SIZE)
    assert backbone.width == 5
    expected = run(net.eval(), images()).mean(dim=(2, 3))
    torch.testing.assert_close(run(backbone.module, images()), expected)
    names = sorted(name for group in backbone.layer_groups for name in group)
    assert names == sorted(name for name, _ in backbone.module.named_parameters())


def test_own_network_with_an_output_of_another_shape_is_refused(net):
    net.n_dims = 3
    with pytest.raises(BackboneError, match=r"Net.*\(1, 5, 256\).*expected \(n, width\)"):
        load_backbone(net, image_size=SIZE)


def test_own_network_that_fails_is_named():
    with pytest.raises(BackboneError, match=r"Linear cannot be run on an image of shape \(3, 32, 32\)"):
        load_backbone(nn.Linear(7, 2), image_size=SIZE)


def test_own_network_must_return_a_tensor():
    class Pair(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)), x

    with pytest.raises(BackboneError, match="must return one tensor, got tuple"):
        load_backbone(Pair(), image_size=SIZE)


def test_classifier_of_an_own_timm_network_is_left_off_the_copy():
    network = timm.create_model("test_resnet", pretrained=False, num_classes=10)
    backbone = load_backbone(network, image_size=SIZE)
    assert backbone.width == 96
    assert network.num_classes == 10
    assert run(network.eval(), images()).shape == (2, 10)


def test_own_network_of_a_local_class_can_be_used():
    """A class that pickle cannot find is no reason against embeddings."""

    class Local(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 1)

        def forward(self, batch):
            return self.layer(batch).mean((2, 3))

    assert load_backbone(Local(), image_size=SIZE).width == 2


def test_layer_groups_of_an_own_network_follow_its_children(net):
    groups = load_backbone(net, image_size=SIZE).layer_groups
    assert [group[0] for group in groups] == ["stem.0.weight", "body.weight"]
    assert sum(map(len, groups)) == len(list(net.parameters()))


@pytest.mark.parametrize("name", ["convnext_atto", "swin_s3_tiny_224", "resnetv2_18", "densenet121"])
def test_a_normalisation_at_the_end_is_no_group_of_its_own(name):
    """timm's groups end with it, so that training the last one would train next to nothing."""
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    groups = layer_groups(network)
    names = [name for name, _ in network.named_parameters()]
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert groups[-1][-1] == names[-1]
    assert max(network.get_parameter(name).ndim for name in groups[-1]) > 1


@pytest.mark.parametrize("name", ["poolformer_s12", "pit_ti_224", "csatv2", "rdnet_tiny"])
def test_stages_that_share_a_child_are_groups_of_their_own(name):
    """As one group, they would be trained together by ``strategy="partial"``: nearly the whole network."""
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    groups = layer_groups(network)
    assert [name for group in groups for name in group] == [name for name, _ in network.named_parameters()]
    sizes = [sum(network.get_parameter(name).numel() for name in group) for group in groups]
    assert len(groups) >= 5
    assert max(sizes) < 0.8 * sum(sizes)


def test_a_normalisation_between_layers_belongs_to_those_before_it():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    assert [len(group) for group in layer_groups(network)] == [4, 4]


# Copies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sktl/tiny", "test_vit", "test_efficientnet"])
def test_pickled_backbone_is_the_same(name):
    backbone = load_backbone(name, weights=None, image_size=SIZE)
    restored = pickle.loads(pickle.dumps(backbone))
    assert isinstance(restored, Backbone)
    assert restored.name == name
    assert restored.data_config == backbone.data_config
    assert fingerprint(restored.module, restored.data_config) == restored.fingerprint == backbone.fingerprint
    assert torch.equal(run(restored.module, images()), run(backbone.module, images()))
    assert not any(module.training for module in restored.module.modules())
    assert not any(parameter.requires_grad for parameter in restored.module.parameters())


@pytest.mark.parametrize("n_dims", [2, 4])
def test_pickled_own_network_keeps_all_its_state(net, n_dims):
    net.n_dims = n_dims
    net.shift.add_(0.25)
    net.stem[1].running_mean.add_(1.0)
    backbone = load_backbone(net, image_size=SIZE)
    restored = pickle.loads(pickle.dumps(backbone))
    assert torch.equal(run(restored.module, images()), run(backbone.module, images()))
    assert torch.equal(run(copy.deepcopy(backbone).module, images()), run(backbone.module, images()))


def test_pickle_holds_the_weights_once(net):
    net.body = nn.Conv2d(4, 5000, 3)
    net.shift = torch.zeros(5000)
    n_bytes = sum(value.nbytes for value in net.state_dict().values())
    assert len(pickle.dumps(load_backbone(net, image_size=SIZE))) < 1.1 * n_bytes


def test_shared_weights_stay_shared():
    backbone = load_backbone(Tied(), image_size=SIZE)
    rebuilt = build_from_recipe(backbone.recipe)
    assert rebuilt.second.weight is rebuilt.first.weight
    restored = pickle.loads(pickle.dumps(backbone))
    assert torch.equal(run(restored.module, images()), run(backbone.module, images()))


# A new random start ---------------------------------------------------------------------------------------------------


def test_own_network_is_reset_through_its_layers(net):
    net.gain.fill_(3.0)
    before = copy.deepcopy(net.state_dict())
    reset_parameters(net)
    assert not torch.equal(net.body.weight, before["body.weight"])
    assert torch.equal(net.stem[1].running_mean, torch.zeros(4))


def test_own_layer_that_cannot_be_reset_is_named():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

    with pytest.raises(BackboneError, match=r"'1' \(Scale\).*reset_parameters"):
        reset_parameters(nn.Sequential(nn.Conv2d(3, 3, 1), Scale()))
