"""FineTuneClassifier: each strategy trains what it says, and labels and images of any form are taken."""

import copy

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from small_models import WAYS, difference, make_model

from sktl import FineTuneClassifier
from sktl.backbones import fingerprint, load_backbone
from sktl.exceptions import InputError
from sktl.strategies import FeatureExtraction

SIZE = 32
TRAINED = [name for name, strategy in WAYS.items() if strategy.trains_backbone]
FROZEN = [name for name in WAYS if name not in TRAINED]


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:160], y[:160]


@pytest.fixture(scope="module")
def few(digits):
    """Sixty rows of three classes."""
    X, y = digits
    rows = np.flatnonzero(y < 3)[:45]
    return X[rows], y[rows]


@pytest.fixture(scope="module")
def fitted(digits):
    """A function that gives the model of a strategy on the bundled backbone, fitted on digits once a module."""
    models = {}

    def get(strategy):
        if strategy not in models:
            epochs = 6 if strategy == "from_scratch" else 3
            model = FineTuneClassifier(
                strategy=strategy, image_shape=(8, 8), image_size=SIZE, max_epochs=epochs, random_state=0
            )
            models[strategy] = model.fit(digits[0][:120], digits[1][:120])
        return models[strategy]

    return get


# Every strategy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", WAYS)
def test_strategy_learns(fitted, digits, strategy):
    model = fitted(strategy)
    assert model.score(digits[0][:120], digits[1][:120]) > 0.3  # chance is 0.1
    assert repr(model.strategy_) == repr(WAYS[strategy]())


@pytest.mark.parametrize("strategy", WAYS)
def test_outputs_agree(fitted, digits, strategy):
    model, X = fitted(strategy), digits[0][120:140]
    proba, scores, labels = model.predict_proba(X), model.decision_function(X), model.predict(X)
    assert proba.shape == scores.shape == (20, 10)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(model.classes_[scores.argmax(axis=1)], labels)
    np.testing.assert_array_equal(model.classes_[proba.argmax(axis=1)], labels)
    np.testing.assert_array_equal(model.predict_log_proba(X), np.log(proba))


@pytest.mark.parametrize("strategy", WAYS)
def test_transform_gives_what_the_head_works_on(fitted, digits, strategy):
    model, X = fitted(strategy), digits[0][120:125]
    embeddings = model.transform(X)
    assert embeddings.shape == (5, 256) == (5, len(model.get_feature_names_out()))
    head = model.net_.module_.head
    np.testing.assert_allclose(
        embeddings @ head.weight.detach().numpy().T + head.bias.detach().numpy(),
        model.decision_function(X),
        rtol=1e-3,
        atol=1e-3,
    )


def test_feature_extraction_changes_nothing_in_the_backbone(fitted):
    original = load_backbone("sktl/tiny", image_size=SIZE)
    model = fitted("feature_extraction")
    assert model.backbone_ is original
    assert model.trainable_parameters_ == 256 * 10 + 10
    assert fingerprint(original.module, original.data_config) == original.fingerprint


@pytest.mark.parametrize("strategy", TRAINED)
def test_training_never_touches_the_shared_backbone(fitted, strategy):
    original = load_backbone("sktl/tiny", image_size=SIZE)
    assert fitted(strategy).backbone_.module is not original.module
    assert fingerprint(original.module, original.data_config) == original.fingerprint
    assert not any(module.training for module in original.module.modules())


def test_partial_trains_the_last_group_alone(fitted):
    original = load_backbone("sktl/tiny", image_size=SIZE)
    trained = set(original.layer_groups[-1])
    model = fitted("partial")
    before, after = original.module.state_dict(), model.backbone_.module.state_dict()
    for name in before:  # buffers too: the statistics of batch normalisation
        assert torch.equal(before[name], after[name]) == (name not in trained), name
    n_trained = sum(value.numel() for name, value in original.module.named_parameters() if name in trained)
    assert model.trainable_parameters_ == n_trained + 256 * 10 + 10


@pytest.mark.parametrize("strategy", ["fine_tuning", "lp_ft"])
def test_fine_tuning_changes_every_weight_but_no_statistics(fitted, strategy):
    before = load_backbone("sktl/tiny", image_size=SIZE).module
    after = fitted(strategy).backbone_.module
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert not torch.equal(old, new), name
    for (name, old), (_, new) in zip(before.named_buffers(), after.named_buffers(), strict=True):
        assert torch.equal(old, new), name


def test_from_scratch_takes_the_architecture_alone(fitted):
    before = load_backbone("sktl/tiny", image_size=SIZE).module.state_dict()
    after = fitted("from_scratch").backbone_.module.state_dict()
    weight = max((name for name in before if before[name].ndim == 4), key=lambda name: before[name].numel())
    correlation = np.corrcoef(before[weight].flatten(), after[weight].flatten())[0, 1]
    assert abs(correlation) < 0.05
    moved = [name for name in before if name.endswith("running_mean") and not torch.equal(before[name], after[name])]
    assert moved


def test_from_scratch_does_not_depend_on_pretrained_weights(few):
    pretrained = make_model("from_scratch").fit(*few)
    other = make_model("from_scratch")
    with torch.no_grad():
        for parameter in other.backbone.parameters():
            parameter.mul_(5)
    assert difference(pretrained, other.fit(*few)) == 0.0


@pytest.mark.parametrize("strategy", WAYS)
def test_own_network_is_not_changed(few, strategy):
    model = make_model(strategy)
    before = copy.deepcopy(model.backbone.state_dict())
    model.fit(*few)
    assert model.backbone.training
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


def test_head_of_feature_extraction_is_converged(fitted, digits):
    """It is scikit-learn's own logistic regression: its training loss is at the optimum of the penalised objective."""
    model = fitted("feature_extraction")
    again = clone(model).set_params(random_state=1).fit(digits[0][:120], digits[1][:120])
    assert difference(model, again) == 0.0
    stronger = clone(model).set_params(strategy=FeatureExtraction(C=1e-4)).fit(digits[0][:120], digits[1][:120])
    assert stronger.net_.module_.head.weight.norm() < 0.5 * model.net_.module_.head.weight.norm()


# Labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["cat", "dog", "ant"],
        [7, -3, 100],
        [2.0, 0.0, 1.0],
        np.array(["b", "a", "c"], dtype=object),
        [10**12, 5, 6],
        np.array([4, -2, 9], dtype=np.int32),
    ],
    ids=["str", "gaps", "float", "object", "large", "int32"],
)
@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
def test_labels_of_any_type(few, names, strategy):
    X, y = few
    labels = np.asarray(names)[y]
    model = make_model(strategy).fit(X, labels)
    np.testing.assert_array_equal(model.classes_, np.unique(labels))
    assert model.classes_.dtype == labels.dtype
    assert model.predict(X).dtype == labels.dtype
    plain = make_model(strategy).fit(X, np.unique(labels, return_inverse=True)[1])
    np.testing.assert_array_equal(model.predict_proba(X), plain.predict_proba(X))


@pytest.mark.parametrize("labels", [list, pd.Series, lambda y: pd.Series(y, dtype="category")])
def test_labels_in_any_container(few, labels):
    X, y = few
    words = np.array(["zero", "one", "two"])[y]
    model = make_model("feature_extraction").fit(X, labels(words))
    assert list(model.classes_) == ["one", "two", "zero"]


@pytest.mark.parametrize("strategy", WAYS)
def test_two_classes(few, strategy):
    X, y = few[0], few[1] > 0
    model = make_model(strategy).fit(X, y)
    scores = model.decision_function(X)
    assert scores.shape == (len(X),)
    assert model.predict(X).dtype == bool
    np.testing.assert_array_equal(model.predict(X), scores > 0)
    proba = model.predict_proba(X)
    assert proba.shape == (len(X), 2)
    np.testing.assert_allclose(proba[:, 1], 1 / (1 + np.exp(-scores.astype(float))), rtol=1e-4, atol=1e-6)


# Images ---------------------------------------------------------------------------------------------------------------


def test_paths_and_words(image_paths):
    X, y = image_paths
    model = FineTuneClassifier(strategy="feature_extraction", image_size=SIZE).fit(X, y)
    assert model.score(X, y) > 0.9
    assert model.input_kind_ == "images"
    frame = pd.DataFrame({"file": X})
    np.testing.assert_array_equal(clone(model).fit(frame, y).predict(frame), clone(model).fit(X, y).predict(X))


def test_bad_rows_are_named(image_paths):
    X, y = image_paths
    with pytest.raises(InputError, match=r"row 1 \('gone\.png'\)") as caught:
        FineTuneClassifier(image_size=SIZE).fit([X[0], "gone.png", *X[1:6], "away.png"], y[:8])
    assert "away.png" in str(caught.value)


def test_bad_rows_are_counted_in_x(image_paths):
    X, y = image_paths
    weight = np.ones(8)
    weight[:3] = 0
    with pytest.raises(InputError) as caught:
        FineTuneClassifier(image_size=SIZE).fit([*X[:5], "gone.png", *X[6:8]], y[:8], sample_weight=weight)
    assert [row.index for row in caught.value.rows] == [5]


def test_rows_without_weight_are_not_read(image_paths):
    X, y = image_paths
    weight = np.ones(9)
    weight[1] = 0
    model = FineTuneClassifier(strategy="feature_extraction", image_size=SIZE)
    model.fit([X[0], "gone.png", *X[2:9]], y[:9], sample_weight=weight)
    assert set(model.classes_) == set(y)


@pytest.mark.parametrize("image_shape", [(8, 8), None])
def test_rows_without_weight_have_no_say_in_the_scale_of_pixels(few, image_shape):
    X, y = few
    bright = np.vstack([X, np.full((1, X.shape[1]), 1000.0)])
    weighted = make_model("feature_extraction", image_shape=image_shape)
    weighted.fit(bright, np.append(y, 0), sample_weight=np.append(np.ones(len(y)), 0.0))
    alone = make_model("feature_extraction", image_shape=image_shape).fit(X, y)
    np.testing.assert_array_equal(weighted.predict_proba(X), alone.predict_proba(X))


# scikit-learn's conventions -------------------------------------------------------------------------------------------


def test_output_container_does_not_reach_the_head(few):
    X, y = few
    model = make_model("feature_extraction").fit(X, y)
    expected = model.predict(X)
    assert isinstance(model.set_output(transform="pandas").transform(X), pd.DataFrame)
    np.testing.assert_array_equal(model.predict(X), expected)
    with sklearn.config_context(transform_output="pandas"):
        np.testing.assert_array_equal(make_model("feature_extraction").fit(X, y).predict(X), expected)


def test_unfitted_is_said(few):
    for method in ("predict", "predict_proba", "decision_function", "transform"):
        with pytest.raises(NotFittedError):
            getattr(make_model(), method)(few[0])


def test_read_only_input_survives(few):
    X, y, weight = few[0].copy(), few[1].copy(), np.ones(len(few[1]))
    for array in (X, y, weight):
        array.flags.writeable = False
    make_model().fit(X, y, sample_weight=weight).predict(X)
    np.testing.assert_array_equal(X, few[0])


def test_a_batch_of_one_row_trains(few):
    make_model("from_scratch", batch_size=1).fit(few[0][:6], few[1][:6] > 0).predict(few[0])
