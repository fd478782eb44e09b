"""FineTuneRegressor: numbers instead of labels, one or several, in their own units."""

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from small_models import WAYS, difference, make_regressor, three_digits

from sktl import FineTuneRegressor
from sktl.strategies import FeatureExtraction

TRAINED = [name for name, strategy in WAYS.items() if strategy.trains_backbone]


@pytest.fixture
def few():
    """Digits, and how much ink each has."""
    X, _ = three_digits()
    return X, X.mean(axis=1)


@pytest.mark.parametrize("strategy", ["feature_extraction", "lp_ft", "partial", "fine_tuning", "from_scratch", "lora"])
def test_strategy_learns(few, strategy):
    model = make_regressor(strategy, max_epochs=25, learning_rate=0.02).fit(*few)
    assert model.score(*few) > 0.3
    assert model.predict(few[0]).dtype == np.float64


def test_head_is_the_ridge_regression_of_scikit_learn(few):
    X, y = few
    weight = 1.0 + np.arange(len(y)) % 3
    model = make_regressor(FeatureExtraction(C=0.5)).fit(X, y, sample_weight=weight)
    embeddings = model.transform(X).astype(np.float64)
    scaler = StandardScaler().fit(embeddings, sample_weight=weight)
    scaled = scaler.transform(embeddings) / np.sqrt(embeddings.shape[1])
    expected = Ridge(alpha=4 / 0.5).fit(scaled, y, sample_weight=weight).predict(scaled)
    np.testing.assert_allclose(model.predict(X), expected, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["feature_extraction", "lp_ft"])
def test_predictions_have_the_shape_of_y(few, strategy):
    X, y = few
    several = np.c_[y, 100 - 3 * y, y**2]
    model = make_regressor(strategy)
    assert model.fit(X, y).predict(X).shape == (45,)
    assert model.fit(X, y[:, None]).predict(X).shape == (45, 1)
    assert model.fit(X, several).predict(X).shape == (45, 3)
    assert model.fit(X, pd.DataFrame(several)).predict(X[:4]).shape == (4, 3)
    assert model.fit(X, csr_array(several)).predict(X[:4]).shape == (4, 3)
    assert np.isfinite(model.score(X, several))


@pytest.mark.parametrize("strategy", WAYS)
def test_units_of_y_do_not_matter(few, strategy):
    X, y = few
    plain = make_regressor(strategy).fit(X, y).predict(X)
    other = make_regressor(strategy).fit(X, 1e6 + 1e-3 * y).predict(X)
    np.testing.assert_allclose((other - 1e6) * 1e3, plain, rtol=1e-2, atol=1e-2)


def test_targets_are_scaled_each_on_its_own(few):
    X, y = few
    model = make_regressor(FeatureExtraction(C=1e4)).fit(X, np.c_[y, 1e5 * y])
    np.testing.assert_allclose(model.target_scale_[1] / model.target_scale_[0], 1e5)
    predictions = model.predict(X)
    np.testing.assert_allclose(predictions[:, 1], 1e5 * predictions[:, 0], rtol=1e-4)


def test_constant_target_is_predicted(few):
    X, y = few
    np.testing.assert_allclose(make_regressor("lp_ft").fit(X, np.full(len(y), 7.0)).predict(X), 7.0, atol=0.1)


@pytest.mark.parametrize("strategy", WAYS)
def test_weight_is_repetition(few, strategy):
    X, y = few
    weight = np.arange(len(y)) % 3
    weighted = make_regressor(strategy, batch_size=8).fit(X, y, sample_weight=weight)
    repeated = make_regressor(strategy, batch_size=8).fit(np.repeat(X, weight, axis=0), np.repeat(y, weight))
    assert difference(weighted, repeated) == 0.0
    np.testing.assert_array_equal(weighted.target_mean_, repeated.target_mean_)
    assert difference(weighted, make_regressor(strategy, batch_size=8).fit(X, y)) > 0.0


@pytest.mark.parametrize("strategy", TRAINED)
def test_order_of_rows_has_no_influence(few, strategy):
    X, y = few
    order = np.random.default_rng(0).permutation(len(y))
    again = make_regressor(strategy, batch_size=8).fit(X[order], y[order])
    assert difference(make_regressor(strategy, batch_size=8).fit(X, y), again) == 0.0


def test_held_out_rows_stop_training_and_give_no_scale(few):
    X, y = few
    model = make_regressor(early_stopping=True, validation_fraction=0.2, max_epochs=3).fit(X, y)
    held_out = model.validation_indices_
    assert len(held_out) == 9
    kept = np.setdiff1d(np.arange(len(y)), held_out)
    np.testing.assert_allclose(model.target_mean_, y[kept].mean())
    assert "valid_loss" in model.history_[-1]
    assert "valid_acc" not in model.history_[-1]


def test_validation_loss_is_that_of_predict(few):
    X, y = few
    model = make_regressor("lp_ft", max_epochs=2).fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:])
    error = np.mean((model.predict(X[30:]) - y[30:]) ** 2) / model.target_scale_[0] ** 2
    assert model.history_[-1]["valid_loss"] == pytest.approx(error, rel=1e-3)


def test_bad_targets_are_explained(few):
    X, y = few
    with pytest.raises(ValueError, match="y_val has 2 targets, but fit saw 1"):
        make_regressor().fit(X, y, X_val=X, y_val=np.c_[y, y])
    with pytest.raises(ValueError, match=r"^y\[0\] is missing \(nan\)"):
        make_regressor().fit(X, np.where(y == y[0], np.nan, y))
    with pytest.raises(ValueError, match="none is left"):
        make_regressor(early_stopping=True, validation_fraction=0.99).fit(X, y)


@pytest.mark.parametrize("unit", [2.0**-1000, 2.0**-600, 2.0**600, 2.0**1020])
def test_units_of_y_are_the_units_of_predictions(few, unit):
    X, y = few
    for strategy in ("feature_extraction", "fine_tuning"):
        expected = make_regressor(strategy).fit(X, y).predict(X)
        np.testing.assert_array_equal(make_regressor(strategy).fit(X, y * unit).predict(X) / unit, expected)


def test_numbers_that_training_cannot_count_in_are_refused(few):
    X, y = few
    with pytest.raises(ValueError, match=r"^y holds -1\.7e\+308, which is too far from the mean"):
        make_regressor("lp_ft").fit(X, np.where(np.arange(len(y)), 1.7e308, -1.7e308))
    with pytest.raises(ValueError, match=r"^y_val holds 1e\+300, which is too far from the mean"):
        make_regressor("lp_ft").fit(X, y, X_val=X[:1], y_val=[1e300])
    with pytest.raises(ValueError, match=r"^y holds 1e\+300, which is too far from the mean"):
        make_regressor("fine_tuning").partial_fit(X, y).partial_fit(X[:1], [1e300])


@pytest.mark.parametrize("strategy", ["feature_extraction", "partial"])
def test_copy_predicts_the_same(few, strategy):
    X, y = few
    model = make_regressor(strategy).fit(X, np.c_[y, -y])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))


def test_search_over_strategies(few):
    search = GridSearchCV(make_regressor(), {"strategy": ["feature_extraction", "partial"]}, cv=2, error_score="raise")
    assert np.isfinite(search.fit(*few).cv_results_["mean_test_score"]).all()


def test_files(image_paths):
    paths, labels = image_paths
    y = np.unique(labels, return_inverse=True)[1].astype(float)
    model = FineTuneRegressor(strategy="feature_extraction", image_size=32).fit(paths, y)
    assert model.score(paths, y) > 0.8
    assert clone(model).get_params().keys() == model.get_params().keys()
