"""Training that goes on: partial_fit call by call, and fit with warm_start."""

import pickle
import pickletools

import numpy as np
import pytest
import torch
from skorch.callbacks import LRScheduler
from small_models import difference, make_model, make_regressor, three_digits

from sktl.embedding import default_store
from sktl.exceptions import InputError, StrategyError
from sktl.strategies import STRATEGIES, BitFit, GradualUnfreezing, Strategy, WiseFT

CLASSES = [0, 1, 2]
IN_PASSES = [name for name, strategy in STRATEGIES.items() if not strategy.needs_original_head]


@pytest.fixture
def few():
    return three_digits()


def passes(model, X, y, n, **options):
    for _ in range(n):
        model.partial_fit(X, y, **options)
    return model


# partial_fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", IN_PASSES)
def test_passes_learn(few, strategy):
    model = make_model(strategy, learning_rate=0.02, batch_size=16)
    passes(model, *few, 20, classes=CLASSES)
    assert model.score(*few) > 0.6  # chance is a third
    assert [entry["phase"] for entry in model.history_] == ["pass"] * 20


def test_regressor_learns_by_passes(few):
    X, _ = few
    y = 1000 + X.mean(axis=1)
    model = passes(make_regressor("feature_extraction", learning_rate=0.05, batch_size=8), X, y, 30)
    assert model.score(X, y) > 0.3
    scale = model.target_scale_
    model.partial_fit(X[:5], 10 * y[:5])
    np.testing.assert_array_equal(model.target_scale_, scale)
    with pytest.raises(ValueError, match="y has 2 targets, but fit saw 1"):
        model.partial_fit(X, np.c_[y, y])


@pytest.mark.parametrize("pickled", [False, True])
def test_passes_follow_parameters_that_have_changed(few, pickled):
    model = passes(make_model("fine_tuning", learning_rate=0.01), *few, 2, classes=CLASSES)
    model = pickle.loads(pickle.dumps(model)) if pickled else model
    model.set_params(learning_rate=0.03, strategy="bitfit").partial_fit(*few)
    assert [entry["lr"] for entry in model.history_] == [0.01, 0.01, 0.03]
    assert type(model.strategy_) is BitFit
    kernels = {name for name, value in model.backbone_.module.named_parameters() if value.ndim > 1}
    before = {name: model.backbone_.module.get_parameter(name).clone() for name in kernels}
    model.partial_fit(*few)
    assert all(torch.equal(model.backbone_.module.get_parameter(name), value) for name, value in before.items())


class HeadFirst(Strategy):
    def param_groups(self, network, lr):
        return [
            {**group, "lr": rate}
            for group, rate in zip(super().param_groups(network, lr)[::-1], (lr, lr / 10), strict=True)
        ]


def test_rate_that_is_told_is_that_of_the_head_in_whatever_group(few):
    model = make_model(HeadFirst(), learning_rate=0.01).partial_fit(*few, classes=CLASSES)
    assert model.history_[-1]["lr"] == 0.01


def test_parameters_of_the_surroundings_leave_passes_as_they_are(few):
    plain, told = (passes(make_model("lora"), *few, 2, classes=CLASSES) for _ in range(2))
    told.set_params(max_epochs=3, warm_start=True, cache_bytes=1000)
    assert difference(plain.partial_fit(*few), told.partial_fit(*few)) == 0.0


def test_passes_that_a_change_of_parameters_has_begun_anew_are_undone_where_they_fail(few):
    X, y = few
    untouched, model = (passes(make_model("fine_tuning"), *few, 2, classes=CLASSES) for _ in range(2))
    model.set_params(strategy="bitfit")
    with pytest.raises(ValueError, match="labels"):
        model.partial_fit(X, y + 7)
    model.set_params(strategy="fine_tuning")
    assert difference(untouched.partial_fit(*few), model.partial_fit(*few)) == 0.0


@pytest.mark.parametrize("other", [{"head": "mlp"}, {"backbone": "test_vit"}, {"image_size": 64}], ids=str)
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_another_network_than_the_first_is_refused(few, call, other):
    model = make_model("feature_extraction", warm_start=True).fit(*few)
    model.set_params(**other)
    with pytest.raises(ValueError, match=f"'{next(iter(other))}' parameter must not change"):
        getattr(pickle.loads(pickle.dumps(model)), call)(*few)


@pytest.mark.parametrize("fitted", [False, True])
def test_a_strategy_that_takes_back_what_was_learnt_is_refused(few, fitted):
    model = make_model(WiseFT(alpha=0.5), max_epochs=1)
    model = model.fit(*few) if fitted else model
    with pytest.raises(StrategyError, match=r"WiseFT\(alpha=0.5\) cannot be trained by partial_fit.*alpha='auto'"):
        model.partial_fit(*few, classes=CLASSES)
    assert not hasattr(model, "net_") or model.score(*few) > 0.5


@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
def test_classes_come_in_parts(few, strategy):
    X, y = few
    model = make_model(strategy)
    model.partial_fit(X[y == 2], y[y == 2], classes=CLASSES)
    np.testing.assert_array_equal(model.classes_, CLASSES)
    assert model.predict_proba(X).shape == (45, 3)
    model.partial_fit(X[y < 2], y[y < 2])
    with pytest.raises(ValueError, match=r"y holds labels that classes does not: \[7\]"):
        model.partial_fit(X[:1], [7])
    with pytest.raises(ValueError, match="is not the same as on last call"):
        model.partial_fit(X, y, classes=[0, 1])


def test_classes_are_needed_first(few):
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        make_model().partial_fit(*few)


def test_optimizer_goes_through_all_calls(few):
    """Steps on one batch, by our calls and by torch's own AdamW."""
    X, y = few
    model = make_model("feature_extraction", weight_decay=0.1, batch_size=64)
    embeddings = torch.from_numpy(model.partial_fit(X, y, classes=CLASSES).transform(X))
    passes(model, X, y, 2)
    head = torch.nn.Linear(embeddings.shape[1], 3)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    groups = [{"params": [head.weight], "weight_decay": 0.1}, {"params": [head.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(embeddings), torch.tensor(y)).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
    found = model.net_.module_.head.weight.detach().numpy()
    np.testing.assert_allclose(found, head.weight.detach().numpy(), atol=1e-4)


def test_frozen_backbone_embeds_each_image_once(few):
    default_store().clear()
    X, y = few
    model = make_model("feature_extraction").partial_fit(X, y, classes=CLASSES)
    before = {name: value.clone() for name, value in model.backbone_.module.state_dict().items()}
    seen = []
    model.backbone_.module.register_forward_hook(lambda module, images, output: seen.append(len(output)))
    passes(model, X, y, 3).predict(X)
    assert not seen
    assert all(torch.equal(value, before[name]) for name, value in model.backbone_.module.state_dict().items())


def test_passes_go_on_from_fit(few):
    X, y = few
    model = make_model("lp_ft", max_epochs=3).fit(X, y)
    before = model.predict_proba(X)
    model.set_params(learning_rate=1e-6).partial_fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X), before, atol=1e-3)
    assert [entry["phase"] for entry in model.history_] == ["head", *["network"] * 3, "pass"]
    again = make_model("lp_ft", max_epochs=3).fit(X, y)
    assert difference(again, model.set_params(learning_rate=None).fit(X, y)) == 0.0  # fit begins anew


@pytest.mark.parametrize("strategy", IN_PASSES)
def test_same_seed_same_weights(few, strategy):
    first, second = (passes(make_model(strategy, batch_size=8), *few, 3, classes=CLASSES) for _ in range(2))
    assert difference(first, second) == 0.0
    assert difference(first, passes(make_model(strategy, batch_size=8, random_state=1), *few, 3, classes=CLASSES)) > 0.0


def test_weight_is_repetition(few):
    X, y = few
    weight = np.arange(len(y)) % 3
    weighted = make_model(batch_size=8).partial_fit(X, y, classes=CLASSES, sample_weight=weight)
    repeated = make_model(batch_size=8)
    repeated.partial_fit(np.repeat(X, weight, axis=0), np.repeat(y, weight), classes=CLASSES)
    assert difference(weighted, repeated) == 0.0


@pytest.mark.parametrize("strategy", ["fine_tuning", "partial", GradualUnfreezing(epochs_per_group=1), "bitfit"])
def test_pickle_goes_on_where_it_was_if_asked(few, strategy):
    X, y = few
    model = passes(make_model(strategy, warm_start=True, batch_size=8), X, y, 3, classes=CLASSES)
    restored = pickle.loads(pickle.dumps(model))
    assert difference(model, restored) == 0.0
    assert difference(passes(model, X, y, 2), passes(restored, X, y, 2)) == 0.0


def test_optimizer_is_pickled_only_if_asked(few):
    def size(**options):
        model = make_model(**options).partial_fit(*few, classes=CLASSES)
        return len(pickletools.optimize(pickle.dumps(model)))

    n_bytes = 4 * sum(value.numel() for value in make_model().backbone.parameters())
    plain = size()
    assert len(pickle.dumps(make_model().fit(*few))) + n_bytes > plain
    assert size(warm_start=True) > plain + 2 * n_bytes
    restored = pickle.loads(pickle.dumps(make_model().partial_fit(*few, classes=CLASSES)))
    assert restored.partial_fit(*few).score(*few) >= 0


def test_failed_pass_leaves_the_model_as_it_was(few):
    X, y = few
    model = make_model()
    with pytest.raises(FloatingPointError):
        model.set_params(learning_rate=1e30).partial_fit(X, y, classes=CLASSES)
    assert not hasattr(model, "classes_")
    model.set_params(learning_rate=1e-3).partial_fit(X, y, classes=CLASSES)
    before = model.predict_proba(X)
    bad = X.copy()
    bad[3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        model.partial_fit(bad, y)
    model._passes.net.set_params(lr=1e30)
    model._passes.net.optimizer_.param_groups[0]["lr"] = 1e30
    with pytest.raises(FloatingPointError):
        passes(model, X, y, 3)
    np.testing.assert_array_equal(model.predict_proba(X), before)
    model.partial_fit(X, y)
    assert np.isfinite(model.predict_proba(X)).all()


def test_layers_that_come_late_are_counted(few):
    model = make_model(GradualUnfreezing(epochs_per_group=1))
    counts = [model.partial_fit(*few, classes=CLASSES).trainable_parameters_ for _ in range(3)]
    n_parameters = sum(value.numel() for value in model.net_.module_.parameters())
    assert counts[0] < counts[1] == counts[2] == n_parameters


def test_form_of_rows_is_kept(few, image_paths):
    model = make_model(image_shape=None).partial_fit(*image_paths, classes=np.unique(image_paths[1]))
    with pytest.raises(InputError, match="fitted on images"):
        model.partial_fit(np.zeros((2, 64)), image_paths[1][:2])


def test_what_cannot_be_passed_is_said(few):
    for yes in (True, np.True_):
        with pytest.raises(ValueError, match="early_stopping should be False with partial_fit"):
            make_model(early_stopping=yes).partial_fit(*few, classes=CLASSES)
    with pytest.raises(ValueError, match=r"needs at least 2 classes in classes, got 1 class instead: 0\."):
        make_model().partial_fit(few[0], np.zeros(45, int), classes=[0])
    with pytest.raises(StrategyError, match=r"LearningWithoutForgetting cannot be trained by partial_fit: .* Use fit"):
        make_model("lwf").partial_fit(*few, classes=CLASSES)
    with pytest.raises(ValueError, match="callbacks should hold no LRScheduler with partial_fit"):
        make_model(callbacks=[LRScheduler("StepLR", step_size=1)]).partial_fit(*few, classes=CLASSES)
    with pytest.raises(ValueError, match="class_weight 'balanced' is not supported for partial_fit"):
        make_model(class_weight="balanced").partial_fit(*few, classes=CLASSES)


def test_heavy_class_is_favoured(few):
    X, y = few
    options = {"learning_rate": 0.05, "batch_size": 16}
    plain = passes(make_model("feature_extraction", **options), X, y, 3, classes=CLASSES)
    heavy = make_model("feature_extraction", class_weight={0: 1, 1: 1, 2: 50}, **options)
    passes(heavy, X, y, 3, classes=CLASSES)
    assert heavy.predict_proba(X)[:, 2].mean() > plain.predict_proba(X)[:, 2].mean() + 0.05


@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
def test_heavy_class_is_favoured_where_it_comes_by_itself(few, strategy):
    X, y = few
    share = {}
    for weight in (1.0, 0.1):
        model = make_model(strategy, learning_rate=0.03, class_weight={0: weight, 1: weight, 2: 1.0})
        for label in 6 * CLASSES:
            model.partial_fit(X[y == label], y[y == label], classes=CLASSES)
        share[weight] = model.predict_proba(X)[:, 2].mean()
    assert share[0.1] > share[1.0] + 0.05


# warm_start -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["fine_tuning", "lp_ft", "partial", "lora", "from_scratch"])
def test_fit_goes_on(few, strategy):
    X, y = few
    options = {"max_epochs": 4, "learning_rate": 0.02}
    cold = make_model(strategy, **options).fit(X, y)
    warm = make_model(strategy, warm_start=True, **options)
    losses = [warm.fit(X, y).history_[-1]["train_loss"] for _ in range(4)]
    assert losses[-1] < 0.9 * cold.history_[-1]["train_loss"]
    assert len([entry for entry in warm.history_ if entry["phase"] == "network"]) == 4
    assert cold.set_params(max_epochs=1).fit(X, y).history_[-1]["train_loss"] > losses[-1]


def test_small_steps_stay_near_where_they_began(few):
    X, y = few
    model = make_model("from_scratch", max_epochs=3, warm_start=True).fit(X, y)
    before = model.predict_proba(X)
    model.set_params(learning_rate=1e-7, strategy="fine_tuning").fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X), before, atol=1e-4)


def test_frozen_head_is_solved_from_anywhere(few):
    X, y = few
    model = make_model("feature_extraction", warm_start=True).fit(X[:30], y[:30]).fit(X, y)
    assert difference(model, make_model("feature_extraction").fit(X, y)) < 1e-2
    assert model.backbone_.fingerprint == make_model("feature_extraction").fit(X, y).backbone_.fingerprint


def test_warm_start_needs_the_same_targets(few):
    X, y = few
    model = make_model(warm_start=True).fit(X, y)
    with pytest.raises(
        ValueError, match="warm_start can only be used where `y` has the same classes as in the previous"
    ):
        model.fit(X[y < 2], y[y < 2])
    model.set_params(warm_start=False).fit(X[y < 2], y[y < 2])
    regressor = make_regressor(warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match="as many targets as in the previous call to fit"):
        regressor.fit(X, np.c_[y, y])
    with pytest.raises(ValueError, match="features"):
        model.set_params(warm_start=True).fit(X[y < 2][:, :-1], y[y < 2])


def test_warm_start_goes_through_pickle(few):
    X, y = few
    model = make_model(warm_start=True).fit(X, y)
    restored = pickle.loads(pickle.dumps(model))
    assert difference(model.fit(X, y), restored.fit(X, y)) == 0.0
