"""Labels in columns: several may hold for a row, each has its own probability."""

import pickle

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from small_models import WAYS, difference, make_model, three_digits
from torch import nn

import sktl
from sktl.exceptions import InputError
from sktl.strategies import FeatureExtraction, JointTraining, LearningWithoutForgetting


@pytest.fixture
def rows():
    """Digits, and whether each is a zero, is round, is no two."""
    X, y = three_digits()
    return X, np.stack([y == 0, y != 1, y != 2], axis=1).astype(int)


@pytest.mark.parametrize("strategy", WAYS)
def test_every_way_predicts_an_indicator_matrix(rows, strategy):
    X, Y = rows
    model = make_model(strategy, max_epochs=10, learning_rate=0.02).fit(X, Y)
    predicted, proba = model.predict(X), model.predict_proba(X)
    assert (predicted.shape, predicted.dtype, proba.dtype) == (Y.shape, np.int64, np.float32)
    np.testing.assert_array_equal(predicted, proba > 0.5)
    np.testing.assert_array_equal(predicted, model.decision_function(X) > 0)
    assert model.score(X, Y) == accuracy_score(Y, predicted)
    assert roc_auc_score(Y, proba) > 0.75
    np.testing.assert_array_equal(model.classes_, [0, 1, 2])
    assert model.multilabel_


def test_closed_head_is_one_logistic_regression_per_label(rows):
    X, Y = rows
    weight = np.linspace(0.5, 2.0, len(Y))
    model = make_model(FeatureExtraction(C=3.0)).fit(X, Y, sample_weight=weight)
    proba = model.predict_proba(X)
    for label, column in enumerate(Y.T):
        alone = make_model(FeatureExtraction(C=3.0)).fit(X, column, sample_weight=weight)
        np.testing.assert_allclose(proba[:, label], alone.predict_proba(X)[:, 1], atol=1e-4)
    logits = model.decision_function(X)
    losses = np.logaddexp(0, np.where(Y, -logits, logits)).mean(axis=1)
    assert model.history_[0]["train_loss"] == pytest.approx(np.average(losses, weights=weight), rel=1e-4)


def test_label_of_all_rows_or_none_keeps_its_share(rows):
    X, Y = rows
    Y = np.c_[Y, np.ones(len(Y), int), np.zeros(len(Y), int)]
    proba = make_model("feature_extraction").fit(X, Y).predict_proba(X)
    np.testing.assert_allclose(proba[:, 3], (45 + 0.5) / 46, rtol=1e-5)
    np.testing.assert_allclose(proba[:, 4], 0.5 / 46, rtol=1e-5)


@pytest.mark.parametrize("kind", [csr_array, np.ndarray.tolist, lambda Y: Y.astype(bool), lambda Y: Y.astype(float)])
def test_forms_of_y_are_the_same(rows, kind):
    X, Y = rows
    expected = make_model("lp_ft").fit(X, Y)
    model = make_model("lp_ft").fit(X, kind(Y))
    np.testing.assert_array_equal(model.predict_proba(X), expected.predict_proba(X))
    assert model.score(X, kind(Y)) == expected.score(X, Y)


@pytest.mark.parametrize("strategy", ["feature_extraction", "lp_ft"])
def test_weight_of_two_is_the_row_twice(rows, strategy):
    X, Y = rows
    twice = np.r_[np.arange(len(X)), np.arange(10)]
    weight = np.r_[np.full(10, 2.0), np.ones(len(X) - 10)]
    first = make_model(strategy).fit(X, Y, sample_weight=weight)
    assert difference(first, make_model(strategy).fit(X[twice], Y[twice])) == 0


@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_class_weight_moves_a_label_alone(rows, strategy, head):
    X, Y = rows
    options = {"head": head, "max_epochs": 8, "learning_rate": 0.01}
    plain = make_model(strategy, **options).fit(X, Y).predict_proba(X).mean(axis=0)
    weight = [{1: 20.0}, {0: 20.0}, {0: 1.0, 1: 1.0}]
    moved = make_model(strategy, **options, class_weight=weight).fit(X, Y).predict_proba(X).mean(axis=0)
    assert moved[0] > plain[0]
    assert moved[1] < plain[1]
    if strategy == "feature_extraction" and head == "linear":
        assert moved[2] == plain[2]


def test_balanced_labels_count_the_same_in_all(rows):
    X, Y = rows
    weight = [{0: len(Y) / 2 / (column == 0).sum(), 1: len(Y) / 2 / column.sum()} for column in Y.T]
    balanced = make_model("lp_ft", class_weight="balanced").fit(X, Y)
    assert difference(balanced, make_model("lp_ft", class_weight=weight).fit(X, Y)) == 0


@pytest.mark.parametrize("weight", [{0: 1.0, 1: 2.0}, [{0: 1.0}] * 2, [1.0, 2.0, 3.0]])
def test_class_weight_of_another_form_is_refused(rows, weight):
    with pytest.raises(ValueError, match="a list of 3 dicts with keys 0 and 1"):
        make_model("lp_ft", class_weight=weight).fit(*rows)


@pytest.mark.parametrize(
    ("weight", "complaint"),
    [
        ({"round": 50.0}, r"class_weight\[1\] has the key 'round'"),
        ({1: -1.0}, r"class_weight\[1\]\[1\] must .* negative"),
    ],
)
def test_class_weight_of_a_label_that_says_nothing_is_refused(rows, weight, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_model("lp_ft", class_weight=[{}, weight, {}]).fit(*rows)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "much"])
def test_class_weight_must_be_a_number_that_is_not_negative(weight):
    with pytest.raises(ValueError, match=r"class_weight\[2\] must be a number that is not negative"):
        make_model("lp_ft", class_weight={2: weight}).fit(*three_digits())


def test_class_weight_of_labels_is_refused_for_classes():
    with pytest.raises(ValueError, match="dict, 'balanced' or None"):
        make_model("lp_ft", class_weight=[{0: 1.0}]).fit(*three_digits())


@pytest.mark.parametrize(
    "head",
    [
        KNeighborsClassifier(3),
        RandomForestClassifier(9, random_state=0),
        MLPClassifier(learning_rate_init=0.02, max_iter=2000),
    ],
)
def test_models_as_head(rows, head):
    X, Y = rows
    Y = np.c_[Y, np.ones(len(Y), int)]
    model = make_model("feature_extraction", head=head).fit(X, Y)
    assert (model.predict(X).shape, model.predict_proba(X).shape) == (Y.shape, Y.shape)
    assert np.mean(model.predict(X) == Y) > 0.8
    assert ((model.predict_proba(X) > 0.5) == model.predict(X)).mean() > 0.99
    with pytest.raises(ValueError, match="'class_weight' parameter must be None"):
        make_model("feature_extraction", head=head, class_weight="balanced").fit(X, Y)


def test_model_of_one_label_as_head_is_told_of_another(rows):
    with pytest.raises(ValueError, match="y should be a 1d array") as caught:
        make_model("feature_extraction", head=LogisticRegression()).fit(*rows)
    assert "head=MultiOutputClassifier(LogisticRegression())" in caught.value.__notes__[-1]
    head = MultiOutputClassifier(LogisticRegression())
    model = make_model("feature_extraction", head=head).fit(*rows)
    assert model.predict(rows[0]).shape == model.predict_proba(rows[0]).shape == rows[1].shape


def test_module_as_head(rows):
    X, Y = rows
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 3))
    model = make_model("feature_extraction", head=head).fit(X, Y)
    assert roc_auc_score(Y, model.predict_proba(X)) > 0.8


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"label_smoothing": 0.3}, {"ema_decay": 0.9}])
def test_refinements_go_with_labels(rows, options):
    plain = make_model("lp_ft", max_epochs=3).fit(*rows)
    refined = make_model("lp_ft", max_epochs=3, **options).fit(*rows)
    assert difference(plain, refined) > 0
    assert np.isfinite(refined.predict_proba(rows[0])).all()


def test_smoothed_labels_are_less_sure(rows):
    options = {"max_epochs": 10, "learning_rate": 0.01}
    models = [make_model(**options, label_smoothing=share).fit(*rows) for share in (0.0, 0.4)]
    sure, smooth = (np.abs(model.decision_function(rows[0])).mean() for model in models)
    assert smooth < sure


def test_early_stopping_holds_out_at_random_and_scores_whole_rows(rows):
    X, Y = rows
    model = make_model("fine_tuning", early_stopping=True, validation_fraction=0.2, max_epochs=2).fit(X, Y)
    assert len(model.validation_indices_) == 9
    assert all(0 <= entry["valid_acc"] <= 1 for entry in model.history_)
    given = make_model("fine_tuning", max_epochs=2).fit(X[:30], Y[:30], X_val=X[30:], y_val=Y[30:])
    assert given.history_[-1]["valid_acc"] == pytest.approx(given.score(X[30:], Y[30:]))
    with pytest.raises(ValueError, match=r"y_val has shape \(15,\); expected \(n, 3\)"):
        make_model("fine_tuning").fit(X[:30], Y[:30], X_val=X[30:], y_val=Y[30:, 0])


def test_rows_that_come_in_parts(rows):
    X, Y = rows
    model = make_model("feature_extraction", learning_rate=0.01)
    for _ in range(40):
        model.partial_fit(X, Y, classes=range(3))
    assert roc_auc_score(Y, model.predict_proba(X)) > 0.8
    with pytest.raises(ValueError, match=r"y has shape \(45, 2\); expected \(n, 3\)"):
        model.partial_fit(X, Y[:, :2])
    with pytest.raises(ValueError, match=r"classes must be range\(3\)"):
        make_model("feature_extraction").partial_fit(X, Y, classes=range(4))


def test_warm_start_needs_the_same_columns(rows):
    X, Y = rows
    model = make_model("lp_ft", warm_start=True).fit(X, Y)
    model.fit(X, Y)
    for other in (Y[:, :2], three_digits()[1]):
        with pytest.raises(ValueError, match="same classes"):
            model.fit(X, other)


@pytest.mark.parametrize("wrong", [2, -1])
def test_numbers_other_than_0_and_1_are_refused(rows, wrong):
    X, Y = rows
    Y = Y.copy()
    Y[Y == 1] = wrong
    with pytest.raises(ValueError, match=r"must hold 0 and 1 only, but y\[\d+\] ="):
        make_model("lp_ft").fit(X, Y)


def test_pickles_and_files(rows, tmp_path):
    X, Y = rows
    model = make_model("wise_ft", class_weight="balanced").fit(X, Y)
    sktl.save(model, tmp_path / "labels.sktl")
    loaded = sktl.load(tmp_path / "labels.sktl", trusted=["small_models.Net", "torch.nn.*"])
    for restored in (pickle.loads(pickle.dumps(model)), loaded):
        np.testing.assert_array_equal(restored.predict_proba(X), model.predict_proba(X))
        np.testing.assert_array_equal(restored.predict(X), model.predict(X))
        assert restored.net_.criterion_.label_weight.shape == (3, 2)


def test_search_over_strategies(rows):
    search = GridSearchCV(make_model("lp_ft"), {"strategy": ["feature_extraction", "lp_ft"]}, scoring="f1_micro", cv=2)
    assert search.fit(*rows).best_score_ > 0.5


def test_old_classes_beside_new_labels(rows):
    X, Y = rows
    old = make_model("lp_ft", max_epochs=3).fit(*three_digits())
    for strategy in (LearningWithoutForgetting(), JointTraining(*three_digits())):
        model = make_model(strategy, backbone=old, max_epochs=2).fit(X, Y)
        assert model.score_original(*three_digits()) > 0.5
        assert model.predict(X).shape == Y.shape
    onwards = make_model("lp_ft", backbone=make_model("lp_ft").fit(X, Y)).fit(*three_digits())
    assert not hasattr(onwards, "original_classes_")  # labels that go together are no task of classes


def test_server_and_command_line_say_that_they_take_one_label(rows, tmp_path):
    from sktl.cli._predict import _ask
    from sktl.serving._model import ServedModel

    X, Y = rows
    images = np.repeat(X.reshape(-1, 8, 8, 1) / 16, 3, axis=3)
    model = make_model("feature_extraction", image_shape=None).fit(images, Y)
    with pytest.raises(InputError, match="one label per image"):
        ServedModel(model, 10**6)
    with pytest.raises(InputError, match="one label per image"):
        _ask(model, [])
