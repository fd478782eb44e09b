"""The learned mix of layers: it finds the layer that tells, and is nothing but a weighted sum."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sktl import PretrainedFeatureTransformer, ScalarMix


@pytest.fixture
def layers(rng):
    """Three layers of four values, of different spread; the targets hang on the second alone."""
    parts = [rng.normal(scale=scale, size=(200, 4)) for scale in (1.0, 0.1, 10.0)]
    return np.hstack(parts), parts[1][:, 0] + parts[1][:, 1]


@pytest.mark.parametrize("task", ["two classes", "three classes", "numbers"])
def test_the_layer_that_tells_counts_most(layers, task):
    X, values = layers
    edges = {"two classes": [0.0], "three classes": [-0.05, 0.05]}
    y = values if task == "numbers" else np.array(list("abc"))[np.digitize(values, edges[task])]
    mix = ScalarMix(n_layers=3).fit(X, y)
    assert mix.weights_[1] > 0.8
    assert mix.weights_.sum() == pytest.approx(1)
    assert (mix.weights_ > 0).all()


def test_output_is_the_weighted_sum_of_scaled_layers(layers):
    X, y = layers
    mix = ScalarMix(n_layers=3).fit(X, y)
    expected = sum(w * X[:, 4 * i : 4 * i + 4] / X[:, 4 * i : 4 * i + 4].std() for i, w in enumerate(mix.weights_))
    np.testing.assert_allclose(mix.transform(X), expected)
    assert list(mix.get_feature_names_out()) == ["scalarmix0", "scalarmix1", "scalarmix2", "scalarmix3"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(mix)).transform(X), mix.transform(X))


def test_penalty_pulls_towards_the_mean(layers):
    weights = ScalarMix(n_layers=3, penalty=1e6).fit(*layers).weights_
    np.testing.assert_allclose(weights, 1 / 3, atol=1e-3)


def test_same_result_again_and_inside_no_grad(layers):
    first = ScalarMix(n_layers=3).fit(*layers).weights_
    with torch.no_grad():
        np.testing.assert_array_equal(ScalarMix(n_layers=3).fit(*layers).weights_, first)


def test_columns_that_are_no_such_layers(layers):
    X, y = layers
    with pytest.raises(ValueError, match="X has 12 columns, which are not 5 layers of the same width"):
        ScalarMix(n_layers=5).fit(X, y)


def test_on_the_layers_of_an_encoder(bert, reviews):
    texts, y = reviews
    every_layer = PretrainedFeatureTransformer(bert, layer=[0, 1], dtype="float32")
    pipeline = make_pipeline(every_layer, ScalarMix(n_layers=2), LogisticRegression(C=10))
    search = GridSearchCV(pipeline, {"scalarmix__C": [0.1, 1.0]}, cv=2).fit(texts, y)
    assert search.score(texts, y) > 0.9


def test_another_number_of_layers_needs_another_fit(rng):
    X = rng.normal(size=(20, 8))
    mix = ScalarMix(2).fit(X, X[:, 0] > 0)
    expected = mix.transform(X)
    np.testing.assert_array_equal(mix.set_params(n_layers=4).transform(X), expected)
