"""The classifier that a network was published with is named, not stored, where it is as published."""

import json
import pickle
from weakref import WeakValueDictionary

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from saved_models import digits, make_classifier, make_embed

import sktl
from sktl.backbones import _backbone, _reference
from sktl.exceptions import UntrustedTypeError, WeightsMismatchError, WeightsNotFoundError

X, Y = digits()
N_CLASSES = 500


@pytest.fixture(scope="module")
def published():
    """A network with its classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_efficientnet", num_classes=N_CLASSES)


@pytest.fixture
def weights(published, tmp_path):
    """The file that it was published in."""
    safetensors.torch.save_file(published.state_dict(), tmp_path / "public.safetensors")
    return tmp_path / "public.safetensors"


@pytest.fixture
def another_process(monkeypatch):
    """Nothing is in memory that could be shared."""
    monkeypatch.setattr(_backbone, "_built", WeakValueDictionary())
    monkeypatch.setattr(_reference, "_heads", WeakValueDictionary())


def fitted(weights, strategy="feature_extraction", **settings):
    return make_classifier(strategy, backbone="test_efficientnet", weights=weights, **settings).fit(X, Y)


def head_of(published):
    """The bytes of the original classifier's weights."""
    return published.get_classifier().weight.detach().numpy().tobytes()


def stored(model, path):
    """Return a model as a pickle and as a file."""
    sktl.save(model, path / "model.sktl")
    return pickle.dumps(model), (path / "model.sktl").read_bytes()


@pytest.mark.parametrize("persist", ["embed", "reference"])
@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
def test_what_was_not_trained_is_left_out(strategy, persist, published, weights, tmp_path):
    model = fitted(weights, strategy, persist=persist)
    tensors = [*model.backbone_.module.state_dict().values(), *model.net_.module_.head.state_dict().values()]
    of_weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    for data in stored(model, tmp_path):
        assert head_of(published) not in data
        assert len(data) < of_weights + 60_000


@pytest.mark.parametrize("strategy", ["feature_extraction", "lwf"])
def test_all_of_it_can_be_stored(strategy, published, weights, tmp_path):
    model = fitted(weights, strategy, persist="embed_all", batch_size=64)
    expected = model.predict_proba_original(X)
    head = model._original.module.weight.detach().numpy().tobytes()
    assert (head == head_of(published)) == (strategy == "feature_extraction")
    data, file = stored(model, tmp_path)
    assert head in data
    assert head in file
    weights.unlink()
    for restored in (pickle.loads(data), sktl.load(tmp_path / "model.sktl")):
        np.testing.assert_array_equal(restored.predict_proba_original(X), expected)


@pytest.mark.usefixtures("another_process")
def test_what_was_trained_is_always_stored(weights, tmp_path):
    model = fitted(weights, "lwf", batch_size=64)
    data, _ = stored(model, tmp_path)
    weights.unlink()
    for restored in (pickle.loads(data), sktl.load(tmp_path / "model.sktl")):
        np.testing.assert_array_equal(restored.predict_proba_original(X), model.predict_proba_original(X))


def test_names_that_are_known_by_their_number_are_not_stored(tmp_path):
    with torch.random.fork_rng():
        state = timm.create_model("test_efficientnet", num_classes=1000).state_dict()
    model = fitted(state)
    data, file = stored(model, tmp_path)
    assert b"tench" not in data
    assert b"tench" not in file
    for restored in (pickle.loads(data), sktl.load(tmp_path / "model.sktl")):
        assert restored.original_classes_[0] == "tench, Tinca tinca"
        np.testing.assert_array_equal(restored.predict_original(X[:5]), model.predict_original(X[:5]))


def test_it_is_found_where_it_was_published(weights, tmp_path, another_process):
    model = fitted(weights)
    data, _ = stored(model, tmp_path)
    expected, classes = model.predict_proba_original(X), model.original_classes_
    del model
    _reference._heads.clear()
    for restored in (pickle.loads(data), sktl.load(tmp_path / "model.sktl", weights=weights)):
        np.testing.assert_array_equal(restored.original_classes_, classes)
        again = pickle.loads(pickle.dumps(restored))
        np.testing.assert_array_equal(restored.predict_proba_original(X), expected)
        np.testing.assert_array_equal(again.predict_proba_original(X), expected)


def test_without_it_everything_else_works(weights, tmp_path, another_process):
    model = fitted(weights)
    data, _ = stored(model, tmp_path)
    expected = model.predict_proba(X)
    del model
    _reference._heads.clear()
    weights.unlink()
    for restored, advice in (
        (pickle.loads(data), "there is no such file"),
        (sktl.load(tmp_path / "model.sktl"), "give that file as weights= to sktl.load"),
    ):
        np.testing.assert_array_equal(restored.predict_proba(X), expected)
        assert len(restored.original_classes_) == N_CLASSES
        with pytest.raises(WeightsNotFoundError, match=f"persist='embed_all'.*{advice}"):
            restored.predict_original(X)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(restored)).predict_proba(X), expected)


def test_a_file_that_has_moved_can_be_named_again(weights, tmp_path, another_process):
    model = fitted(weights)
    data, expected = pickle.dumps(model), model.predict_original(X)
    del model
    _reference._heads.clear()
    moved = weights.rename(tmp_path / "moved.safetensors")
    restored = pickle.loads(data)
    with pytest.raises(WeightsNotFoundError, match="there is no such file"):
        restored.predict_original(X)
    restored.set_params(weights=moved)
    np.testing.assert_array_equal(restored.predict_original(X), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(restored)).predict_original(X), expected)


def test_another_one_is_refused(published, weights, tmp_path, another_process):
    data, _ = stored(fitted(weights), tmp_path)
    _reference._heads.clear()
    state = {name: value + 1 for name, value in published.state_dict().items()}
    safetensors.torch.save_file(state, weights)
    for restored in (pickle.loads(data), sktl.load(tmp_path / "model.sktl", weights=weights)):
        with pytest.raises(WeightsMismatchError, match="is another one: its SHA-256"):
            restored.predict_original(X)


def test_places_that_a_file_names_need_trust(weights, tmp_path, another_process):
    place = tmp_path / "published"
    place.mkdir()
    weights.rename(place / "model.safetensors")
    card = {
        "architecture": "test_efficientnet",
        "num_classes": N_CLASSES,
        "pretrained_cfg": {"input_size": [3, 160, 160], "classifier": "classifier", "first_conv": "conv_stem"},
    }
    (place / "config.json").write_text(json.dumps(card))
    name = f"local-dir:{place}"
    model = make_classifier(backbone=name).fit(X, Y)
    expected = model.predict_proba_original(X)
    stored(model, tmp_path)
    del model
    _reference._heads.clear()
    careful = sktl.load(tmp_path / "model.sktl")
    assert len(careful.predict(X)) == len(X)
    with pytest.raises(UntrustedTypeError, match="is looked up elsewhere") as caught:
        careful.predict_original(X)
    assert caught.value.names == [name]
    trusting = sktl.load(tmp_path / "model.sktl", trusted=["local-dir:*"])
    np.testing.assert_array_equal(trusting.predict_proba_original(X), expected)


def test_fit_goes_on_from_a_head_that_is_found(weights):
    model = pickle.loads(pickle.dumps(fitted(weights, warm_start=True, batch_size=64)))
    model.set_params(strategy="lwf").fit(X, Y)
    assert model._original.source is None
    assert model.predict_proba_original(X).shape == (len(X), N_CLASSES)


def test_transformers_have_no_original_classifier():
    with pytest.raises(ValueError, match=r"'persist' parameter .* must be a str among"):
        make_embed(persist="embed_all").fit(X)
