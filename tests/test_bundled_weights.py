"""The bundled backbone: its files fit each other, the architecture and the limits of the package."""

import hashlib
import json
from importlib.resources import files

import pytest
import timm
import torch
from safetensors.torch import load

from sktl.backbones._bundled import BUNDLED

FOLDER = files("sktl.backbones.bundled")


@pytest.fixture(scope="module", params=sorted(set(BUNDLED.values())))
def stem(request):
    """Name of a version's files, without their suffix."""
    return request.param


@pytest.fixture(scope="module")
def weights(stem):
    """Content of the weights file."""
    return FOLDER.joinpath(f"{stem}.safetensors").read_bytes()


@pytest.fixture(scope="module")
def about(stem):
    """The description beside the weights."""
    return json.loads(FOLDER.joinpath(f"{stem}.json").read_text())


@pytest.fixture(scope="module")
def network(weights, about):
    """The network with the bundled weights, loaded strictly."""
    network = timm.create_model(about["architecture"], pretrained=False, num_classes=0, **about["architecture_kwargs"])
    network.load_state_dict({name: value.float() for name, value in load(weights).items()}, strict=True)
    return network.eval()


def test_description_names_what_is_needed(about, stem):
    assert about["name"] == "sktl/tiny"
    assert stem == f"tiny-{about['version']}"
    assert about["license"] == "BSD-3-Clause"
    keys = {"input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"}
    assert set(about["data_config"]) == keys


def test_sha256_matches_the_file(weights, about):
    assert hashlib.sha256(weights).hexdigest() == about["sha256"]


def test_file_is_small_half_precision_and_finite(weights):
    assert len(weights) <= 6_000_000
    for name, value in load(weights).items():
        assert value.dtype == torch.float16, name
        assert value.isfinite().all(), name


@pytest.mark.parametrize("size", [32, 64, 160])
def test_embedding_is_finite_and_has_the_stated_width(network, about, size):
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        embedding = network(images)
    assert embedding.shape == (2, about["width"])
    assert embedding.isfinite().all()
    assert embedding.std() > 0


def test_network_has_stages_and_batch_norm(network):
    assert len(network.feature_info) >= 4
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


def test_there_is_a_model_card(about, stem):
    card = FOLDER.joinpath(f"{stem}.md").read_text()
    assert about["sha256"] in card
    assert about["license"] in card
