"""What turns embeddings into numbers: layers, small networks, modules of one's own, models of scikit-learn."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsRegressor
from sklearn.svm import SVR
from small_models import make_regressor, three_digits
from torch import nn

from sktl.exceptions import StrategyError
from sktl.training.new_heads import MLPHead


def own_head():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 1))


HEADS = {"mlp": "mlp", "module": own_head()}


@pytest.fixture
def ink():
    X, _ = three_digits()
    return X, X.mean(axis=1) * 100 + 5


@pytest.mark.parametrize("strategy", ["feature_extraction", "lp_ft", "fine_tuning"])
@pytest.mark.parametrize("head", HEADS)
def test_networks_as_head(ink, head, strategy):
    model = make_regressor(strategy, head=HEADS[head], max_epochs=20, learning_rate=0.02).fit(*ink)
    assert model.score(*ink) > 0
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict(ink[0]), model.predict(ink[0]))
    np.testing.assert_array_equal(clone(model).fit(*ink).predict(ink[0]), model.predict(ink[0]))


def test_mlp_bends_where_a_line_does_not(ink):
    X, y = ink
    bent = (y - y.mean()) ** 2
    line = make_regressor("feature_extraction").fit(X, bent)
    model = make_regressor("feature_extraction", head="mlp").fit(X, bent)
    assert isinstance(model.net_.module_.head, MLPHead)
    assert model.score(X, bent) > line.score(X, bent)


@pytest.mark.parametrize("head", [Ridge(), KNeighborsRegressor(3), SVR()])
def test_models_as_head(ink, head):
    X, y = ink
    model = make_regressor("feature_extraction", head=head).fit(X, y)
    embeddings = model.transform(X)
    scaled = clone(head).fit(embeddings, (y - y.mean()) / y.std())
    np.testing.assert_allclose(model.predict(X), scaled.predict(embeddings) * y.std() + y.mean(), rtol=1e-3)
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict(X), model.predict(X))


def test_models_as_head_of_several_targets_with_weights(ink):
    X, y = ink
    Y, weight = np.c_[y, -2 * y], np.r_[np.full(10, 2.0), np.ones(len(y) - 10)]
    model = make_regressor("feature_extraction", head=Ridge()).fit(X, Y, sample_weight=weight)
    twice = np.r_[np.arange(len(y)), np.arange(10)]
    again = make_regressor("feature_extraction", head=Ridge()).fit(X[twice], Y[twice])
    assert model.predict(X).shape == Y.shape
    np.testing.assert_allclose(model.predict(X), again.predict(X), rtol=1e-4)


def test_heads_can_be_searched(ink):
    grid = {"head": ["linear", "mlp", KNeighborsRegressor(3)]}
    search = GridSearchCV(make_regressor("feature_extraction"), grid, cv=2, error_score="raise").fit(*ink)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_dropout_hides_values_in_training_only(ink):
    plain = make_regressor("fine_tuning").fit(*ink)
    hidden = make_regressor("fine_tuning", dropout=0.5).fit(*ink)
    assert np.abs(plain.predict(ink[0]) - hidden.predict(ink[0])).max() > 0
    np.testing.assert_array_equal(hidden.predict(ink[0]), hidden.predict(ink[0]))


def test_what_cannot_be_a_head_is_refused(ink):
    with pytest.raises(ValueError, match="must be a regressor, got GaussianNB"):
        make_regressor("feature_extraction", head=GaussianNB()).fit(*ink)
    with pytest.raises(StrategyError, match="strategy='feature_extraction' only"):
        make_regressor("lp_ft", head=Ridge()).fit(*ink)
    with pytest.raises(ValueError, match=r"expected \(2, 1\)"):
        make_regressor("feature_extraction", head=nn.Linear(16, 3)).fit(*ink)
