"""What training that goes on from an earlier call must have in common with it."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from small_models import difference, make_model, make_network, make_regressor, three_digits

import sktl
from sktl import FineTuneClassifier
from sktl.backbones import load_backbone
from sktl.exceptions import StrategyError, WeightsNotFoundError
from sktl.strategies import L2SP, GradualUnfreezing, JointTraining, LoRA, Strategy
from sktl.training import checkpoint

TINY = {"image_shape": (8, 8), "image_size": 32, "max_epochs": 1, "random_state": 0, "dtype": "float32"}


@pytest.fixture
def few():
    return three_digits()


# What is described of the parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", [torch.Tensor.bfloat16, torch.Tensor.half, lambda value: torch.nn.Parameter(value.clone())]
)
def test_weights_may_be_tensors_of_any_kind(few, form):
    state = load_backbone("sktl/tiny").module.state_dict()
    weights = {name: form(value) if value.is_floating_point() else value for name, value in state.items()}
    model = FineTuneClassifier(strategy="feature_extraction", weights=weights, **TINY)
    assert model.fit(*few).partial_fit(*few).score(*few) > 0.8


def test_fits_do_not_hash_what_is_compared_with_nothing(few, monkeypatch):
    images, y = torch.from_numpy(few[0].astype("u1").reshape(-1, 8, 8, 1).repeat(3, axis=3)), few[1]
    base = FineTuneClassifier(strategy="feature_extraction", **TINY).set_params(image_shape=None).fit(images, y)
    monkeypatch.setattr(checkpoint, "digest_of", None)  # cannot be called
    clone(base).set_params(backbone=base, strategy=JointTraining(images, y)).fit(images, y)


def test_tensors_are_described_by_their_values(few):
    tensors = [torch.ones(2), torch.ones(2).bfloat16(), torch.zeros(2), torch.ones(1, 2), np.ones(2), np.ones(2, "f4")]
    assert len({checkpoint.describe(tensor) for tensor in tensors}) == len(tensors)
    assert checkpoint.describe(torch.ones(2)) == checkpoint.describe(torch.nn.Parameter(torch.ones(2)))


# Which networks are the same ------------------------------------------------------------------------------------------


def fitted(y, **parameters):
    model = FineTuneClassifier(strategy="fine_tuning", **{**TINY, "batch_size": 8, **parameters})
    return model.fit(three_digits()[0], y)


@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_a_fitted_backbone_is_judged_by_its_weights_alone(few, call, tmp_path):
    inner = fitted(few[1], memory=tmp_path)
    model = FineTuneClassifier(inner, strategy="feature_extraction", warm_start=True, **TINY).fit(*few)
    restored = pickle.loads(pickle.dumps(model))
    assert getattr(restored, call)(*few).score(*few) > 0.8
    other = fitted(few[1][::-1], memory=tmp_path)
    with pytest.raises(ValueError, match="'backbone' parameter must not change"):
        getattr(model.set_params(backbone=other), call)(*few)
    inner.fit(few[0], few[1][::-1])
    with pytest.raises(ValueError, match="'backbone' parameter must not change"):
        getattr(model.set_params(backbone=inner), call)(*few)


@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_modules_are_judged_by_their_weights(few, call):
    head = torch.nn.Linear(16, 3)
    model = make_model("fine_tuning", head=head, warm_start=True).fit(*few)
    restored = pickle.loads(pickle.dumps(model))
    assert difference(getattr(model, call)(*few), getattr(restored, call)(*few)) == 0.0
    for name, module in {"backbone": make_network(), "head": copy.deepcopy(head)}.items():
        next(module.parameters()).data.add_(1.0)
        changed = pickle.loads(pickle.dumps(model)).set_params(**{name: module})
        with pytest.raises(ValueError, match=f"'{name}' parameter must not change"):
            getattr(changed, call)(*few)


@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_weights_are_judged_by_their_values_and_files_by_their_name(few, call, tmp_path):
    state = dict(load_backbone("sktl/tiny").module.state_dict())
    other = {name: value * 2 for name, value in state.items()}
    (tmp_path / "elsewhere").mkdir()
    first, moved, third = (tmp_path / name for name in ("a.safetensors", "elsewhere/a.safetensors", "b.safetensors"))
    save_file(state, first)
    same = dict(reversed(state.items()))
    for given, alike, others in (
        ("pretrained", "pretrained", (None, str(first), state)),
        (None, None, ("pretrained", third)),
        (state, same, ("pretrained", other)),
        (first, str(moved), ("pretrained", third, state)),
    ):
        model = FineTuneClassifier(strategy="lp_ft", weights=given, warm_start=True, **TINY).fit(*few)
        for weights in others:
            with pytest.raises(ValueError, match=r"'weights' parameter must not change .{,300}, or fit a new"):
                getattr(model.set_params(weights=weights), call)(*few)
        getattr(pickled(model.set_params(weights=alike)), call)(*few)


def test_training_goes_on_from_a_file_that_does_not_tell_where_weights_were(few, tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file(load_backbone("sktl/tiny").module.state_dict(), weights)
    model = FineTuneClassifier(strategy="lp_ft", weights=weights, warm_start=True, **TINY).fit(*few)
    sktl.save(model, tmp_path / "model.sktl")
    weights.unlink()
    assert sktl.load(tmp_path / "model.sktl").fit(*few).partial_fit(*few).score(*few) > 0.8


# A model of scikit-learn as head --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "model"), [(make_model, LogisticRegression()), (make_regressor, Ridge())])
def test_passes_do_not_go_on_from_a_model(few, make, model):
    """Else they trained a network that predict does not ask, on targets of another scale."""
    X, y = few
    estimator = make("feature_extraction", head=model).fit(X, y)
    before = estimator.predict(X)
    with pytest.raises(StrategyError, match="partial_fit needs a head trained by gradient steps"):
        estimator.partial_fit(X, y)
    with pytest.raises(ValueError, match="'head' parameter must not change where training goes on"):
        estimator.set_params(head="linear").partial_fit(X, y[::-1])
    estimator._settings_of_network = {}  # as of a file of an older version
    with pytest.raises(StrategyError, match="partial_fit needs a head trained by gradient steps"):
        estimator.partial_fit(X, y[::-1])
    np.testing.assert_array_equal(estimator.predict(X), before)


@pytest.mark.parametrize(("make", "model"), [(make_model, LogisticRegression()), (make_regressor, Ridge())])
def test_a_fit_begins_anew_after_a_model(few, make, model):
    """Nothing of the network was trained: there is nothing to go on from."""
    X, y = few
    warm = make("feature_extraction", head=model, warm_start=True).fit(X[:30], y[:30])
    warm.set_params(head="linear").fit(X, y)
    assert difference(warm, make("feature_extraction").fit(X, y)) == 0.0
    with pytest.raises(ValueError, match="'head' parameter must not change where training goes on"):
        warm.set_params(head=model).fit(X, y)


# Streams that are broken off ------------------------------------------------------------------------------------------


def passes(model, X, y, n, between=lambda model: model):
    for _ in range(n):
        model = between(model).partial_fit(X, y)
    return model


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def test_a_call_that_fails_is_not_counted_and_resets_no_count(few):
    model = make_model(GradualUnfreezing()).fit(*few).set_params(learning_rate=1e-9)
    passes(model, *few, 2)
    model._passes.net.optimizer_.param_groups[0]["lr"] = math.nan
    with pytest.raises(FloatingPointError):
        model.partial_fit(*few)
    before = model.predict_proba(few[0])
    model.partial_fit(*few)
    np.testing.assert_allclose(model.predict_proba(few[0]), before, atol=1e-4)
    assert model.trainable_parameters_ == sum(value.numel() for value in model.net_.module_.parameters())


@pytest.mark.parametrize("warm_start", [False, True])
def test_a_pickle_counts_on(few, warm_start):
    model = make_model(GradualUnfreezing(), warm_start=warm_start).partial_fit(*few, classes=[0, 1, 2])
    first = model.trainable_parameters_
    assert pickled(pickled(model)).partial_fit(*few).trainable_parameters_ > first


@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_the_anchor_stays_at_the_pretrained_weights(few, call):
    model = make_model("fine_tuning", learning_rate=0.03, batch_size=8, max_epochs=5, warm_start=True).fit(*few)
    pretrained = load_backbone(model.backbone, image_size=16).module.state_dict()

    def distance():
        state = model.backbone_.module.state_dict()
        return sum(float((state[name] - value).square().sum()) for name, value in pretrained.items())

    far = distance()
    model.set_params(strategy=L2SP(alpha=100.0))
    for _ in range(4):
        model = getattr(pickled(model), call)(*few)
    assert distance() < 0.2 * far


def test_a_stream_through_pickles_is_one_stream(few):
    options = {"warm_start": True, "learning_rate": 0.01, "batch_size": 8}
    for strategy, tolerance in ((L2SP(alpha=10.0), 0.0), ("wise_ft", 0.0), ("from_scratch", 0.0)):
        plain = make_model(strategy, **options).partial_fit(*few, classes=[0, 1, 2])
        stored = pickled(plain)
        assert difference(passes(plain, *few, 4), passes(stored, *few, 4, between=pickled)) <= tolerance


def test_another_anchor_than_before_is_refused(few, tmp_path):
    file = tmp_path / "weights.safetensors"
    state = load_backbone("sktl/tiny").module.state_dict()
    save_file(state, file)
    model = FineTuneClassifier(strategy="l2_sp", weights=file, warm_start=True, **TINY)
    model = pickled(model.partial_fit(*few, classes=[0, 1, 2]))
    save_file({name: value * 2 for name, value in state.items()}, file)
    with pytest.raises(StrategyError, match=r"L2SP\(\) refers to the pretrained weights, .* others than before"):
        model.partial_fit(*few)
    file.unlink()
    with pytest.raises(WeightsNotFoundError, match=r"weights.safetensors") as refusal:
        model.fit(*few)
    assert "L2SP() refers to the pretrained weights" in refusal.value.__notes__[0]
    model.set_params(strategy="wise_ft").fit(*few)  # which refers to none
    save_file(state, file)
    assert model.set_params(strategy="l2_sp").partial_fit(*few).score(*few) > 0.5


def adam_steps(model):
    """How many steps the optimizer knows of for each parameter that LoRA has added."""
    state, named = model._passes.net.optimizer_.state, model._passes.network.named_parameters()
    return {int(state[parameter]["step"]) for name, parameter in named if ".lora_" in name}


def test_lora_takes_its_additions_up_again(few):
    options = {"warm_start": True, "learning_rate": 0.01, "batch_size": 45}
    plain = make_model(LoRA(rank=2), **options).partial_fit(*few, classes=[0, 1, 2])
    stored = passes(pickled(plain), *few, 4, between=pickled)
    assert difference(passes(plain, *few, 4), stored) < 1e-4
    assert adam_steps(plain) == adam_steps(stored) == {5}
    plain.set_params(weight_decay=0.02).partial_fit(*few)
    stored.set_params(weight_decay=0.02).partial_fit(*few)
    assert difference(plain, stored) < 1e-4
    assert adam_steps(plain) == {6}


@pytest.mark.parametrize("break_off", ["rank", "failure", "no warm_start", "nothing kept"])
def test_new_additions_have_no_past(few, break_off, monkeypatch):
    model = make_model(LoRA(rank=2), warm_start=True, learning_rate=0.01, batch_size=45)
    model = passes(model.partial_fit(*few, classes=[0, 1, 2]), *few, 3)
    before = model.predict_proba(few[0])
    if break_off == "rank":
        model.set_params(strategy__rank=3)
    elif break_off == "failure":
        model._passes.net.optimizer_.param_groups[0]["lr"] = math.nan
        with pytest.raises(FloatingPointError):
            model.partial_fit(*few)
    elif break_off == "no warm_start":
        model = pickled(model.set_params(warm_start=False))
    else:
        monkeypatch.setattr(LoRA, "keep", Strategy.keep)
    model.set_params(learning_rate=1e-9).partial_fit(*few)
    np.testing.assert_allclose(model.predict_proba(few[0]), before, atol=1e-4)
    assert adam_steps(model) == {1}
