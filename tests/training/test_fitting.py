"""What decides the trained weights: seeds, the weights of rows, and rows that are held out."""

import gc
import hashlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from small_models import WAYS, difference, make_model, three_digits

from sktl import FineTuneClassifier
from sktl.strategies import FeatureExtraction
from sktl.training import TrainingData

TRAINED = [name for name, strategy in WAYS.items() if strategy.trains_backbone]


@pytest.fixture
def few():
    return three_digits()


# Randomness -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", WAYS)
def test_same_seed_same_weights(few, strategy):
    assert difference(make_model(strategy).fit(*few), make_model(strategy).fit(*few)) == 0.0


@pytest.mark.parametrize("strategy", ["fine_tuning", "lp_ft"])
def test_files_and_arrays_of_the_same_pixels_give_the_same_weights(strategy, rng, tmp_path):
    images = rng.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    paths = [str(tmp_path / f"{number}.png") for number in range(24)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    options = {"image_shape": None, "early_stopping": True, "validation_fraction": 0.25, "batch_size": 6}
    first, second = (make_model(strategy, **options).fit(X, np.arange(24) % 3) for X in (images, paths))
    np.testing.assert_array_equal(first.validation_indices_, second.validation_indices_)
    assert difference(first, second) == 0.0


def test_the_state_of_global_generators_has_no_influence(few):
    first = make_model().fit(*few)
    with torch.random.fork_rng():
        torch.manual_seed(123)
        np_state, py_state = np.random.get_state(), random.getstate()  # noqa: NPY002
        np.random.seed(123)  # noqa: NPY002
        random.seed(123)
        second = make_model().fit(*few)
        np.random.set_state(np_state)  # noqa: NPY002
        random.setstate(py_state)
    assert difference(first, second) == 0.0


def test_a_random_state_is_drawn_from(few):
    """Two fits with one generator differ; the same generator anew gives the same."""
    shared = np.random.RandomState(7)
    first, second = (make_model(random_state=shared).fit(*few) for _ in range(2))
    assert difference(first, second) > 0.0
    assert difference(first, make_model(random_state=np.random.RandomState(7)).fit(*few)) == 0.0


def test_no_random_state_is_numpys_global_generator(few):
    state = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(11)  # noqa: NPY002
        first = make_model(random_state=None).fit(*few)
        second = make_model(random_state=None).fit(*few)
        np.random.seed(11)  # noqa: NPY002
        again = make_model(random_state=None).fit(*few)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    assert difference(first, second) > 0.0
    assert difference(first, again) == 0.0


@pytest.mark.parametrize("strategy", TRAINED)
def test_other_seed_other_weights(few, strategy):
    assert difference(make_model(strategy).fit(*few), make_model(strategy, random_state=1).fit(*few)) > 0.0


def test_same_seed_same_weights_in_another_process():
    code = """
import hashlib
from sklearn.datasets import load_digits
from sktl import FineTuneClassifier
X, y = load_digits(return_X_y=True)
model = FineTuneClassifier(strategy="fine_tuning", image_shape=(8, 8), image_size=16, max_epochs=1, random_state=3)
print(hashlib.sha256(model.fit(X[:40], y[:40]).predict_proba(X[:50]).tobytes()).hexdigest())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    X, y = load_digits(return_X_y=True)
    model = FineTuneClassifier(strategy="fine_tuning", image_shape=(8, 8), image_size=16, max_epochs=1, random_state=3)
    assert found == hashlib.sha256(model.fit(X[:40], y[:40]).predict_proba(X[:50]).tobytes()).hexdigest()


@pytest.mark.parametrize("strategy", WAYS)
def test_global_state_is_left_alone(few, strategy):
    def state():
        return (
            torch.get_rng_state().numpy().tobytes(),
            np.random.get_state()[1].tobytes(),  # noqa: NPY002
            hash(random.getstate()),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        )

    before = state()
    make_model(strategy, early_stopping=True, validation_fraction=0.2).fit(*few).predict(few[0])
    assert state() == before


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("params", [{"strategy": "lp_ft"}, {"strategy": "feature_extraction", "head": "mlp"}])
def test_gradients_are_there_even_where_the_caller_has_switched_them_off(few, context, params):
    def fitted():
        return make_model(**params).fit(*few), make_model(**params).partial_fit(*few, classes=np.unique(few[1]))

    expected = fitted()
    with context():
        found = fitted()
    for model, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(model.predict_proba(few[0]), other.predict_proba(few[0]))


# Weights of rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", WAYS)
def test_weight_is_repetition(few, strategy):
    X, y = few
    weight = np.arange(len(y)) % 3
    weighted = make_model(strategy, batch_size=8, max_epochs=2).fit(X, y, sample_weight=weight)
    repeated = make_model(strategy, batch_size=8, max_epochs=2).fit(np.repeat(X, weight, axis=0), np.repeat(y, weight))
    assert difference(weighted, repeated) == 0.0


def test_order_of_rows_has_no_influence(few):
    X, y = few
    order = np.random.default_rng(0).permutation(len(y))
    assert difference(make_model(batch_size=8).fit(X, y), make_model(batch_size=8).fit(X[order], y[order])) == 0.0


@pytest.mark.parametrize(
    ("strategy", "batch_size"), [(FeatureExtraction(C=0.1), 32), ("fine_tuning", 64), ("fine_tuning", 1)]
)
def test_a_heavy_class_is_favoured(few, strategy, batch_size):
    """Also in batches of one row: weights must not cancel out in the mean of a batch."""
    X, y = few
    options = {"batch_size": batch_size, "max_epochs": 5, "learning_rate": 0.05}
    plain = make_model(strategy, **options).fit(X, y).predict_proba(X)[:, 2].mean()
    heavy = make_model(strategy, class_weight={0: 1, 1: 1, 2: 50}, **options).fit(X, y).predict_proba(X)[:, 2].mean()
    assert heavy > plain + 0.05


def test_balanced_classes_and_sample_weight_agree(few):
    X, y = few
    keep = np.flatnonzero((y > 0) | (np.arange(len(y)) % 4 == 0))
    X, y = X[keep], y[keep]
    weight = (len(y) / (3 * np.bincount(y)))[y]
    balanced = make_model(class_weight="balanced").fit(X, y)
    assert difference(balanced, make_model().fit(X, y, sample_weight=weight)) < 1e-6
    assert difference(balanced, make_model().fit(X, y)) > 1e-6


@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
def test_rows_without_weight_do_not_count(few, strategy):
    X, y = few
    weight = (y < 2).astype(float)
    model = make_model(strategy).fit(X, y, sample_weight=weight)
    assert list(model.classes_) == [0, 1]
    assert difference(model, make_model(strategy).fit(X[y < 2], y[y < 2])) == 0.0


def test_weights_that_are_all_zero_are_refused(few):
    with pytest.raises(ValueError, match=r"(?i)weight.*(zero|no row)"):
        make_model().fit(*few, sample_weight=np.zeros(len(few[1])))


def test_negative_weights_are_refused(few):
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        make_model().fit(*few, sample_weight=-np.ones(len(few[1])))


# Validation and early stopping ----------------------------------------------------------------------------------------


def test_rows_are_held_out_by_class(few):
    X, y = few
    model = make_model(early_stopping=True, validation_fraction=0.2).fit(X, y)
    held_out = model.validation_indices_
    assert len(held_out) == 9
    assert np.all(np.diff(held_out) > 0)
    assert np.ptp(np.bincount(y[held_out])) <= 1
    kept = np.setdiff1d(np.arange(len(y)), held_out)
    validated = make_model(early_stopping=True).fit(X[kept], y[kept], X_val=X[held_out], y_val=y[held_out])
    assert model.history_[-1]["valid_loss"] == pytest.approx(validated.history_[-1]["valid_loss"], rel=1e-3)


def test_held_out_rows_are_counted_in_x(few):
    X, y = few
    weight = np.r_[np.zeros(15), np.ones(len(y) - 15)]
    held_out = make_model(early_stopping=True).fit(X, y, sample_weight=weight).validation_indices_
    assert held_out.min() >= 15


def test_nothing_is_held_out_of_few_rows(few):
    model = make_model().fit(*few)
    assert model.validation_indices_ is None
    assert "valid_loss" not in model.history_[-1]


def test_validation_rows_leave_training_rows_whole(few):
    X, y = few
    model = make_model(early_stopping=True).fit(X, y).fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:])
    assert model.validation_indices_ is None
    epoch = model.history_[-1]
    assert epoch["valid_loss"] > 0
    assert 0 <= epoch["valid_acc"] <= 1


def test_validation_accuracy_is_that_of_predict(few):
    X, y = few
    model = make_model("lp_ft", max_epochs=2).fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:])
    assert model.history_[-1]["valid_acc"] == pytest.approx(model.score(X[30:], y[30:]))


def test_validation_weights_count(few):
    X, y = few
    weight = np.r_[np.ones(5), np.zeros(10)]
    weighted = make_model(batch_size=4).fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:], sample_weight_val=weight)
    fewer = make_model(batch_size=4).fit(X[:30], y[:30], X_val=X[30:35], y_val=y[30:35])
    for key in ("valid_loss", "valid_acc"):
        assert weighted.history_[-1][key] == pytest.approx(fewer.history_[-1][key])


def test_early_stopping_stops_and_goes_back_to_the_best_weights(few):
    X, y = few
    options = {"early_stopping": True, "learning_rate": 0.1, "max_epochs": 30, "n_iter_no_change": 2}
    wrong = (y[30:] + 1) % 3  # the better the training rows are learnt, the worse
    model = make_model(**options).fit(X[:30], y[:30], X_val=X[30:], y_val=wrong)
    losses = [epoch["valid_loss"] for epoch in model.history_]
    assert len(losses) < 30
    assert np.argmin(losses) == len(losses) - 3
    proba = model.predict_proba(X[30:])
    assert -np.log(proba[np.arange(15), wrong]).mean() == pytest.approx(min(losses), rel=1e-3)


def test_without_early_stopping_all_epochs_are_run(few):
    X, y = few
    options = {"early_stopping": False, "learning_rate": 0.1, "max_epochs": 6, "n_iter_no_change": 1}
    model = make_model(**options).fit(X[:30], y[:30], X_val=X[30:], y_val=(y[30:] + 1) % 3)
    assert len(model.history_) == 6


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_too_few_rows_to_hold_out_are_explained(few, fraction):
    with pytest.raises(ValueError, match=r"early_stopping holds out .*early_stopping=False"):
        make_model(early_stopping=True, validation_fraction=fraction).fit(*few)


def test_class_of_one_row_cannot_be_held_out(few):
    X, y = few
    y = np.where(np.arange(len(y)) == 0, 9, y)
    with pytest.raises(ValueError, match="rarest"):
        make_model(early_stopping=True, validation_fraction=0.5).fit(X, y)


def test_unknown_labels_in_validation_are_named(few):
    X, y = few
    with pytest.raises(ValueError, match=r"y_val holds labels that y does not: \[77\]"):
        make_model().fit(X, y, X_val=X[:2], y_val=[0, 77])


def test_validation_rows_need_labels(few):
    with pytest.raises(ValueError, match="y"):
        make_model().fit(*few, X_val=few[0][:2])


def test_a_fitted_estimator_holds_no_images():
    def alive():
        gc.collect()
        return sum(type(each) is TrainingData for each in gc.get_objects())

    before = alive()
    model = make_model("partial", early_stopping=True, learning_rate="auto").fit(*three_digits())
    assert alive() == before
    assert model.predict(three_digits()[0]).shape == (len(three_digits()[1]),)
