"""What can be named as ``backbone=``, and what a user reads when it cannot be had."""

import json
import logging
import pickle

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import sktl
from sktl.backbones import load_backbone
from sktl.exceptions import BackboneError, UnknownBackboneError, WeightsNotFoundError

SIZE = 32


@pytest.fixture
def fresh_cache(monkeypatch):
    """Backbones that earlier tests have loaded are not found."""
    from sktl.backbones import _load

    monkeypatch.setattr(_load, "_shared", _load._SharedBackbones(capacity=4))


@pytest.fixture
def empty_hub(monkeypatch):
    """A hub that cannot be reached; returns the list of what was asked of it."""
    asked = []

    def hf_hub_download(repo_id=None, filename=None, **kwargs):
        asked.append((repo_id, filename))
        raise ConnectionError("no route to host")

    for module in ("huggingface_hub", "timm.models._hub"):
        monkeypatch.setattr(f"{module}.hf_hub_download", hf_hub_download)
    return asked


# Names ----------------------------------------------------------------------------------------------------------------


def test_every_listed_name_comes_from_the_bundle_or_timm():
    names = sktl.list_backbones()
    assert names[0] == "sktl/tiny"
    assert {name for name in names if not name.startswith("sktl/")} == set(timm.list_models(pretrained=True))
    assert len(names) == len(set(names))


def test_names_are_filtered_by_wildcards():
    assert "sktl/tiny" not in sktl.list_backbones("resnet*")
    assert sktl.list_backbones("*tiny")[0] == "sktl/tiny"
    assert "test_resnet" not in sktl.list_backbones("test_resnet")  # with weights, names carry a tag
    assert sktl.list_backbones("test_resnet", pretrained=False) == ["test_resnet"]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("resnet5O", "'resnet50'"),
        ("test_resnt", "'test_resnet'"),
        ("sktl/tinny", "'sktl/tiny'"),
        ("resnet18.a1_in1", "'resnet18.a1_in1k'"),
    ],
)
def test_unknown_name_gets_close_matches(name, match):
    with pytest.raises(UnknownBackboneError, match=r"sktl\.list_backbones") as caught:
        load_backbone(name)
    assert repr(name) in str(caught.value)
    assert match in str(caught.value)


@pytest.mark.parametrize("name", ["no such thing at all", "", "https://example.org/model", "sound:org/name", "a:b"])
def test_what_resembles_nothing_is_an_unknown_backbone(name):
    with pytest.raises(UnknownBackboneError) as caught:
        load_backbone(name)
    assert repr(name) in str(caught.value)


def test_unknown_backbone_is_a_value_error():
    with pytest.raises(ValueError, match="There is no backbone 'nope'"):
        load_backbone("nope")


# The bundled backbone -------------------------------------------------------------------------------------------------


def test_bundled_backbone_needs_no_hub(empty_hub, fresh_cache):
    backbone = load_backbone("sktl/tiny")
    assert backbone.name == "sktl/tiny"
    assert empty_hub == []


def test_bundled_name_without_version_means_the_newest():
    versions = sorted(name for name in sktl.list_backbones() if name.startswith("sktl/tiny-"))
    assert versions[0] == "sktl/tiny-1"
    assert load_backbone(versions[-1]).fingerprint == load_backbone("sktl/tiny").fingerprint
    assert len({load_backbone(name).fingerprint for name in versions}) == len(versions)


def test_bundled_weights_that_were_changed_are_refused(monkeypatch, fresh_cache):
    from sktl.backbones import _bundled

    card = dict(_bundled.bundled_card("sktl/tiny"), sha256="0" * 64)
    monkeypatch.setattr(_bundled, "bundled_card", lambda name: card)
    with pytest.raises(BackboneError, match=r"damaged.*Install sktl again"):
        load_backbone("sktl/tiny")


def test_bundled_architecture_can_start_at_random():
    first, second = load_backbone("sktl/tiny"), load_backbone("sktl/tiny", weights=None)
    assert first.width == second.width
    assert first.fingerprint != second.fingerprint


# The hub --------------------------------------------------------------------------------------------------------------


def test_unreachable_hub_is_one_error_that_names_the_ways_out(empty_hub, fresh_cache):
    from huggingface_hub import constants

    with pytest.raises(WeightsNotFoundError) as caught:
        load_backbone("test_resnet.r160_in1k")
    message = str(caught.value)
    assert empty_hub, "the hub was not even asked"
    for part in ("timm/test_resnet.r160_in1k", "model.safetensors", constants.HF_HUB_CACHE, "weights=", "'sktl/tiny'"):
        assert part in message
    assert "no route to host" in message
    assert len(message.splitlines()) == 1


def test_a_failed_download_is_tried_again(empty_hub, fresh_cache):
    for _ in range(2):
        with pytest.raises(WeightsNotFoundError):
            load_backbone("test_resnet.r160_in1k")
    assert len(empty_hub) >= 2


def test_unreachable_hub_repository_names_the_ways_out(empty_hub, fresh_cache):
    with pytest.raises(BackboneError) as caught:
        load_backbone("hf-hub:org/model")
    message = str(caught.value)
    for part in ("hf-hub:org/model", "no route to host", "weights=", "'sktl/tiny'"):
        assert part in message


def test_weights_come_from_the_hub(monkeypatch, tmp_path, fresh_cache):
    source = timm.create_model("test_resnet", pretrained=False)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *args, **kwargs: str(tmp_path / "model.safetensors"))
    backbone = load_backbone("test_resnet.r160_in1k")
    expected = source.reset_classifier(0) or source.eval()
    images = torch.rand(2, 3, *backbone.data_config["input_size"][1:])
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module(images), expected(images), rtol=0, atol=0)
    assert backbone.data_config["mean"] == [0.5, 0.5, 0.5]


def save_local_dir(folder, architecture="test_vit", **kwargs):
    """Write a model folder as the hub holds it; returns the network in it."""
    network = timm.create_model(architecture, pretrained=False, **kwargs)
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {"architecture": architecture, "num_classes": kwargs.get("num_classes", 1000), "model_args": {}}
    config["pretrained_cfg"] = {"input_size": [3, 160, 160], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config["pretrained_cfg"] |= {"interpolation": "bilinear", "crop_pct": 0.9, "classifier": "head"}
    config["pretrained_cfg"]["fixed_input_size"] = architecture == "test_vit"
    (folder / "config.json").write_text(json.dumps(config))
    return network


@pytest.mark.parametrize("mean", [(0.5, 0.25, 0.5), np.array([0.5, 0.25, 0.5]), tuple(np.float32([0.5, 0.25, 0.5]))])
def test_data_config_may_hold_numbers_of_numpy(mean):
    backbone = load_backbone("sktl/tiny", data_config={"mean": mean, "crop_pct": np.float32(0.75)})
    plain = load_backbone("sktl/tiny", data_config={"mean": [0.5, 0.25, 0.5], "crop_pct": 0.75})
    assert backbone.data_config == plain.data_config
    assert backbone.fingerprint == plain.fingerprint


def test_none_in_data_config_leaves_the_backbone_its_own():
    assert load_backbone("sktl/tiny", data_config={"crop_pct": None}).data_config["crop_pct"] == 1.0


def test_local_dir_gives_weights_and_data_config(tmp_path, fresh_cache):
    network = save_local_dir(tmp_path, num_classes=7)
    backbone = load_backbone(f"local-dir:{tmp_path}")
    assert backbone.width == 64
    assert backbone.data_config["mean"] == [0.1, 0.2, 0.3]
    assert backbone.data_config["interpolation"] == "bilinear"
    assert torch.equal(backbone.module.state_dict()["pos_embed"], network.state_dict()["pos_embed"])


@pytest.mark.parametrize("prefix", ["local-dir", "Local-Dir"])
def test_local_dir_that_was_written_again_is_loaded_again(prefix, tmp_path, fresh_cache):
    name = f"{prefix}:{tmp_path}"
    save_local_dir(tmp_path, num_classes=7)
    first = load_backbone(name)
    assert load_backbone(name) is first
    network = save_local_dir(tmp_path, num_classes=7)
    assert torch.equal(load_backbone(name).module.state_dict()["pos_embed"], network.state_dict()["pos_embed"])


def test_local_dir_that_is_not_there_is_named(tmp_path, fresh_cache):
    with pytest.raises(BackboneError, match="nowhere"):
        load_backbone(f"local-dir:{tmp_path / 'nowhere'}")


# weights= -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """A whole timm network, classifier included, whose weights are not those of a random start."""
    with torch.random.fork_rng():
        torch.manual_seed(99)
        return timm.create_model("test_resnet", pretrained=False, num_classes=10)


@pytest.fixture(scope="module")
def expected_state(trained):
    """What of it a backbone holds."""
    return {name: value for name, value in trained.state_dict().items() if not name.startswith("fc.")}


def assert_same_state(backbone, expected):
    found = backbone.module.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("ending", ["safetensors", "pth", "pt", "bin", "pth.tar"])
def test_weights_from_a_file(trained, expected_state, tmp_path, ending):
    path = tmp_path / f"weights.{ending}"
    (save_file if ending == "safetensors" else torch.save)(trained.state_dict(), path)
    assert_same_state(load_backbone("test_resnet", weights=str(path), image_size=SIZE), expected_state)
    assert_same_state(load_backbone("test_resnet", weights=path, image_size=SIZE), expected_state)


def test_weights_from_a_checkpoint_of_a_training_run(trained, expected_state, tmp_path):
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "checkpoint.pth")
    backbone = load_backbone("test_resnet", weights=tmp_path / "checkpoint.pth", image_size=SIZE)
    assert_same_state(backbone, expected_state)


def test_weights_from_a_file_without_classifier(expected_state, tmp_path):
    save_file(expected_state, tmp_path / "headless.safetensors")
    backbone = load_backbone("test_resnet", weights=tmp_path / "headless.safetensors", image_size=SIZE)
    assert_same_state(backbone, expected_state)


def test_weights_from_a_state_dict_are_copied(trained, expected_state):
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    backbone = load_backbone("test_resnet", weights=state, image_size=SIZE)
    for value in state.values():
        value.zero_()
    assert_same_state(backbone, expected_state)


def test_weights_of_a_file_that_was_rewritten_are_read_anew(trained, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(trained.state_dict(), path)
    before = load_backbone("test_resnet", weights=path, image_size=SIZE)
    save_file({name: value + 1 for name, value in trained.state_dict().items()}, path)
    after = load_backbone("test_resnet", weights=path, image_size=SIZE)
    assert before.fingerprint != after.fingerprint


def test_vit_weights_from_a_file_follow_the_image_size(tmp_path):
    """A position embedding is resampled, just as it is for published weights."""
    network = timm.create_model("test_vit", pretrained=False)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    backbone = load_backbone("test_vit", weights=tmp_path / "vit.safetensors", image_size=SIZE)
    state = backbone.module.state_dict()
    assert state["pos_embed"].shape[1] == (SIZE // 16) ** 2 + 1
    assert torch.equal(state["blocks.0.attn.qkv.weight"], network.state_dict()["blocks.0.attn.qkv.weight"])


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_weights_file_is_not_run(tmp_path):
    torch.save({"fc.weight": _Bomb(tmp_path / "was_here")}, tmp_path / "evil.pth")
    with pytest.raises(BackboneError, match=r"evil\.pth.*cannot be read as weights"):
        load_backbone("test_resnet", weights=tmp_path / "evil.pth", image_size=SIZE)
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights"])
def test_broken_weights_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=f"{name}.*cannot be read as weights"):
        load_backbone("test_resnet", weights=tmp_path / name, image_size=SIZE)


def test_missing_weights_file_is_named(tmp_path):
    with pytest.raises(WeightsNotFoundError, match=r"gone\.pth.*no such file"):
        load_backbone("test_resnet", weights=str(tmp_path / "gone.pth"))


def test_misspelt_pretrained_is_explained():
    with pytest.raises(WeightsNotFoundError, match=r"'pretraind'.*weights='pretrained'"):
        load_backbone("sktl/tiny", weights="pretraind")


def test_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(BackboneError, match=r"must be a file that ends in one of \.safetensors"):
        load_backbone("test_resnet", weights=tmp_path / "model.onnx")


def drop(state):
    del state["layer1.0.conv1.weight"]


def reshape(state):
    state["layer1.0.conv1.weight"] = torch.zeros(2, 2)


def empty(state):
    state.clear()


@pytest.mark.parametrize("spoil", [drop, reshape, empty])
def test_weights_that_do_not_fit_are_refused(trained, tmp_path, spoil, caplog):
    state = dict(trained.state_dict())
    spoil(state)
    save_file(state, tmp_path / "other.safetensors")
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(BackboneError, match="do not fit backbone='test_resnet'") as caught,
    ):
        load_backbone("test_resnet", weights=tmp_path / "other.safetensors", image_size=SIZE)
    assert "other.safetensors" in str(caught.value)
    assert not caplog.records, "timm's own report of it is noise"


def test_weights_of_another_architecture_are_refused(trained):
    with pytest.raises(BackboneError, match=r"the state dict given as weights= do.* backbone='test_vit'"):
        load_backbone("test_vit", weights=trained.state_dict())


def test_random_start_is_always_the_same_and_moves_no_generator(fresh_cache, monkeypatch):
    from sktl.backbones import _backbone, _load

    before = torch.get_rng_state()
    first = load_backbone("test_resnet", weights=None, image_size=SIZE)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    monkeypatch.setattr(_load, "_shared", _load._SharedBackbones(capacity=4))
    monkeypatch.setattr(_backbone, "_built", {})  # else the second has the module of the first
    second = load_backbone("test_resnet", weights=None, image_size=SIZE)
    assert first.module is not second.module
    assert_same_state(second, first.module.state_dict())


# Sharing --------------------------------------------------------------------------------------------------------------


def test_a_backbone_is_loaded_once():
    assert load_backbone("sktl/tiny", image_size=SIZE) is load_backbone("sktl/tiny", image_size=(SIZE, SIZE))
    assert load_backbone("sktl/tiny", image_size=SIZE) is not load_backbone("sktl/tiny", image_size=64)


def test_few_backbones_are_kept(fresh_cache):
    first = load_backbone("test_resnet", weights=None, image_size=SIZE)
    for size in (40, 48, 56, 64):
        load_backbone("test_resnet", weights=None, image_size=size)
    assert load_backbone("test_resnet", weights=None, image_size=SIZE) is not first


def test_a_network_in_use_is_not_there_twice(fresh_cache):
    first = load_backbone("sktl/tiny", image_size=SIZE)
    for size in (40, 48, 56, 64):
        load_backbone("sktl/tiny", image_size=size)
    second = load_backbone("sktl/tiny", image_size=SIZE)
    assert pickle.loads(pickle.dumps(second)).module is second.module is first.module
