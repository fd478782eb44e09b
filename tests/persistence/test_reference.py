"""With persist="reference" only what was trained is stored; the public weights are found again, and none but them."""

import json
import pickle
from weakref import WeakValueDictionary

import numpy as np
import pytest
import safetensors.torch
import torch
from saved_models import IMAGES, digits, make_classifier, make_embed
from torch import nn

import sktl
from sktl.backbones import _backbone, load_backbone
from sktl.backbones._reference import ReferredWeights, digest_of, refer
from sktl.exceptions import BackboneError, UntrustedTypeError, WeightsMismatchError, WeightsNotFoundError
from sktl.strategies import STRATEGIES

X, Y = digits()
ROUND_TRIPS = ["pickle", "file"]


def round_trip(model, way, path, **options):
    """Return what a model becomes, and the bytes that it took."""
    if way == "pickle":
        data = pickle.dumps(model)
        return pickle.loads(data), len(data)
    sktl.save(model, path / "model.sktl")
    return sktl.load(path / "model.sktl", **options), (path / "model.sktl").stat().st_size


@pytest.fixture(scope="module")
def full_size():
    return len(pickle.dumps(make_classifier().fit(X, Y)))


@pytest.mark.parametrize("way", ROUND_TRIPS)
@pytest.mark.parametrize(
    ("strategy", "most_bytes"), [("feature_extraction", 60_000), ("bitfit", 140_000), ("partial", 4_000_000)]
)
def test_only_what_was_trained_is_stored(strategy, most_bytes, way, tmp_path):
    model = make_classifier(strategy, persist="reference").fit(X, Y)
    restored, n_bytes = round_trip(model, way, tmp_path)
    assert n_bytes < most_bytes
    np.testing.assert_array_equal(restored.predict_proba(X), model.predict_proba(X))
    again, n_bytes_again = round_trip(restored, way, tmp_path)
    assert n_bytes_again == pytest.approx(n_bytes, rel=0.02)
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))


@pytest.mark.parametrize("way", ROUND_TRIPS)
def test_lora_stores_its_small_matrices(way, tmp_path):
    pytest.importorskip("peft", reason="LoRA needs peft")
    from sktl.strategies import LoRA

    strategy = LoRA(rank=2)
    model = make_classifier(strategy, persist="reference", learning_rate=0.05).fit(X, Y)
    full = sum(value.numel() for value in model.backbone_.module.state_dict().values()) * 4
    n_trained = sum(matrix.numel() for pair in model.backbone_.low_rank.values() for matrix in pair)
    restored, n_bytes = round_trip(model, way, tmp_path)
    assert n_bytes < 4 * n_trained + 100_000 < 0.2 * full
    np.testing.assert_array_equal(restored.predict_proba(X), model.predict_proba(X))
    assert model.backbone_.fingerprint != make_classifier().fit(X, Y).backbone_.fingerprint


def test_transformer_in_a_pickle_is_a_few_kilobytes():
    embed = make_embed(persist="reference").fit(X)
    data = pickle.dumps(embed)
    assert len(data) < 10_000
    np.testing.assert_array_equal(pickle.loads(data).transform(X[:5]), embed.transform(X[:5]))


def test_reference_names_a_version_of_the_bundled_weights():
    state = load_backbone("sktl/tiny").module.state_dict()
    weights = refer(state, {}, backbone="sktl/tiny", weights="pretrained")
    assert weights.source["backbone"].startswith("sktl/tiny-")
    assert weights.changed == {}


def test_reference_without_a_version_means_the_first():
    state = load_backbone("sktl/tiny-1").module.state_dict()
    source = {"backbone": "sktl/tiny", "weights": "pretrained"}
    found = ReferredWeights(source, digest_of(state), {}, {}).unpack()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.fixture
def weights(tmp_path):
    """A file of weights that stand for a public network's."""
    module = load_backbone("test_efficientnet", weights=None).module
    safetensors.torch.save_file(module.state_dict(), tmp_path / "public.safetensors")
    return tmp_path / "public.safetensors"


@pytest.fixture
def model(weights):
    settings = {**IMAGES, "persist": "reference"}
    return sktl.FineTuneClassifier("test_efficientnet", "feature_extraction", weights=weights, **settings).fit(X, Y)


@pytest.fixture(scope="module")
def weights_with_classifier(tmp_path_factory):
    """A file of weights as published: with the classifier that some ways of transfer need."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model("test_efficientnet", num_classes=7)
    path = tmp_path_factory.mktemp("published") / "public.safetensors"
    safetensors.torch.save_file(module.state_dict(), path)
    return path


@pytest.mark.parametrize("persist", ["embed", "reference"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_in_both_forms(strategy, persist, weights_with_classifier, tmp_path):
    if strategy == "lora":
        pytest.importorskip("peft", reason="LoRA needs peft")
    settings = {"weights": weights_with_classifier, "persist": persist, "batch_size": 64}
    model = make_classifier(strategy, backbone="test_efficientnet", **settings).fit(X, Y)
    for way, options in {"pickle": {}, "file": {"weights": weights_with_classifier}}.items():
        restored, _ = round_trip(model, way, tmp_path, **options)
        np.testing.assert_array_equal(restored.predict_proba(X), model.predict_proba(X))
        np.testing.assert_array_equal(restored.predict_proba_original(X), model.predict_proba_original(X))


@pytest.fixture
def another_process(monkeypatch):
    """No network is in memory that could be shared."""
    monkeypatch.setattr(_backbone, "_built", WeakValueDictionary())


@pytest.mark.usefixtures("another_process")
def test_other_weights_under_the_name_are_refused(model, weights, tmp_path):
    data = pickle.dumps(model)
    sktl.save(model, tmp_path / "model.sktl")
    _backbone._built.clear()
    state = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({name: value + 1 for name, value in state.items()}, weights)
    with pytest.raises(WeightsMismatchError, match="with SHA-256"):
        pickle.loads(data).predict(X)
    with pytest.raises(WeightsMismatchError, match="with SHA-256"):
        sktl.load(tmp_path / "model.sktl", weights=weights)


@pytest.mark.usefixtures("another_process")
def test_weights_that_are_gone_are_named(model, weights, tmp_path):
    data = pickle.dumps(model)
    sktl.save(model, tmp_path / "model.sktl")
    _backbone._built.clear()
    moved = weights.rename(tmp_path / "moved.safetensors")
    with pytest.raises(WeightsNotFoundError, match="there is no such file"):
        pickle.loads(data).predict(X)
    with pytest.raises(WeightsNotFoundError, match=r"weights 'public\.safetensors' .* give that file as weights="):
        sktl.load(tmp_path / "model.sktl")
    restored = sktl.load(tmp_path / "model.sktl", weights=moved)
    np.testing.assert_array_equal(restored.predict_proba(X), model.predict_proba(X))


def test_file_does_not_tell_where_its_weights_were(model, weights, tmp_path):
    sktl.save(model, tmp_path / "model.sktl")
    assert str(tmp_path).encode() not in (tmp_path / "model.sktl").read_bytes()


def test_network_from_elsewhere_needs_trust(weights, tmp_path):
    place = tmp_path / "published"
    place.mkdir()
    weights.rename(place / "model.safetensors")
    card = {"architecture": "test_efficientnet", "num_classes": 0, "pretrained_cfg": {"input_size": [3, 160, 160]}}
    (place / "config.json").write_text(json.dumps(card))
    name = f"local-dir:{place}"
    settings = {**IMAGES, "persist": "reference"}
    model = sktl.FineTuneClassifier(name, "feature_extraction", **settings).fit(X, Y)
    sktl.save(model, tmp_path / "model.sktl")
    with pytest.raises(UntrustedTypeError, match="is looked up elsewhere") as caught:
        sktl.load(tmp_path / "model.sktl")
    assert caught.value.names == [name]
    restored = sktl.load(tmp_path / "model.sktl", trusted=["local-dir:*"])
    np.testing.assert_array_equal(restored.predict_proba(X), model.predict_proba(X))


def test_what_has_no_name_is_refused_in_fit():
    for settings in ({"weights": None}, {"backbone": nn.Flatten()}):
        with pytest.raises(BackboneError, match="can be named"):
            make_classifier(persist="reference", **settings).fit(X, Y)
