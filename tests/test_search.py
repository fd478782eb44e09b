"""Searching over ways of transfer with scikit-learn's own tools."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from torch import nn

from sktl import FineTuneClassifier, PretrainedFeatureTransformer
from sktl.embedding import default_store
from sktl.strategies import FeatureExtraction, FineTuning, PartialFineTuning

IMAGES = {"image_shape": (8, 8), "image_size": 16}


class Counting(nn.Module):
    """A small backbone that counts the images that all of its copies see."""

    seen = 0

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2))

    def forward(self, images):
        Counting.seen += len(images)
        return self.body(images).flatten(1)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    rows = np.flatnonzero(y < 3)[:60]
    return X[rows], y[rows]


@pytest.fixture
def counting():
    """A fresh count and an empty store; the function gives what was counted since."""
    default_store().clear()
    Counting.seen = 0
    return lambda: Counting.seen


def test_search_over_strategies(digits):
    model = FineTuneClassifier(max_epochs=1, random_state=0, **IMAGES)
    strategies = ["feature_extraction", "fine_tuning", PartialFineTuning(n_groups=2), FeatureExtraction(C=0.5)]
    search = GridSearchCV(model, {"strategy": strategies}, cv=2, error_score="raise").fit(*digits)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_score_ > 0.6
    assert search.score(*digits) > 0.6
    assert search.best_estimator_.strategy_ is not search.best_params_["strategy"]
    assert "strategy_" not in vars(model)


@pytest.mark.parametrize("strategy", ["partial", PartialFineTuning()])
def test_search_over_a_parameter_of_the_strategy(digits, strategy):
    model = FineTuneClassifier(Counting(), strategy, max_epochs=1, random_state=0, **IMAGES)
    search = GridSearchCV(model, {"strategy__C": [0.1, 10.0]}, cv=2, error_score="raise").fit(*digits)
    assert search.best_params_["strategy__C"] == search.best_estimator_.strategy_.C
    assert model.strategy is strategy


def test_search_over_strategies_and_their_parameters(digits):
    grid = [
        {"strategy": ["feature_extraction"], "strategy__C": [0.1, 1.0]},
        {"strategy": [FineTuning()], "strategy__backbone_lr_scale": [0.1], "learning_rate": [0.01]},
    ]
    model = FineTuneClassifier(Counting(), max_epochs=1, random_state=0, **IMAGES)
    search = GridSearchCV(model, grid, cv=2, error_score="raise", refit=False).fit(*digits)
    assert len(search.cv_results_["params"]) == 3


def test_search_in_a_pipeline_embeds_each_image_once(digits, counting):
    X, y = digits
    embed = PretrainedFeatureTransformer(Counting(), batch_size=1, dtype="float32", device="cpu", **IMAGES)
    n_distinct = len(np.unique(X, axis=0))
    embed.fit(X).transform(X)
    once = counting()
    assert n_distinct <= once <= n_distinct + 5
    default_store().clear()
    model = make_pipeline(clone(embed), LogisticRegression(max_iter=1000))
    search = GridSearchCV(model, {"logisticregression__C": [0.01, 0.1, 1.0, 10.0]}, cv=3, error_score="raise")
    search.fit(X, y).predict(X)
    n_fits, blank = 4 * 3 + 1, 2  # for the width, and for the runtime's check of itself
    assert counting() - once <= n_distinct + n_fits * blank + 5
    assert search.best_score_ > 0.6


def test_search_over_heads_embeds_each_image_once(digits, counting):
    X, y = digits
    model = FineTuneClassifier(
        Counting(), "feature_extraction", random_state=0, dtype="float32", device="cpu", **IMAGES
    )
    GridSearchCV(model, {"strategy__C": [0.01, 0.1, 1.0, 10.0]}, cv=3, error_score="raise").fit(X, y).predict(X)
    n_fits, batch = 4 * 3 + 1, 8
    n_distinct = len(np.unique(X, axis=0))
    # One blank image per fit; batches are filled up, and each split leaves one batch that is not full.
    assert counting() <= n_distinct + n_fits + 5 * batch


def test_search_over_backbones_by_name_and_as_objects(digits):
    model = FineTuneClassifier(strategy="feature_extraction", random_state=0, **IMAGES)
    backbones = ["sktl/tiny", Counting()]
    search = GridSearchCV(model, {"backbone": backbones}, cv=2, error_score="raise").fit(*digits)
    assert search.cv_results_["param_backbone"][0] == "sktl/tiny"
    assert search.cv_results_["param_backbone"][1] is backbones[1]
    assert search.best_estimator_.transform(digits[0][:2]).shape[1] in (256, 32)
    assert search.best_score_ > 0.6


def test_search_over_what_an_embedding_is(digits):
    embed = PretrainedFeatureTransformer(image_shape=(8, 8), image_size=32)
    model = make_pipeline(embed, LogisticRegression(max_iter=1000))
    grid = {
        "pretrainedfeaturetransformer__layer": [None, -2, [1, -1]],
        "pretrainedfeaturetransformer__pooling": ["auto", "max"],
    }
    search = GridSearchCV(model, grid, cv=2, error_score="raise").fit(*digits)
    widths = {str(params["pretrainedfeaturetransformer__layer"]) for params in search.cv_results_["params"]}
    assert widths == {"None", "-2", "[1, -1]"}
    assert search.best_score_ > 0.6


def test_a_candidate_that_fails_gets_the_error_score(digits):
    model = FineTuneClassifier(Counting(), "fine_tuning", max_epochs=2, random_state=0, **IMAGES)
    grid = {"learning_rate": [0.01, 1e30]}
    with pytest.warns(FitFailedWarning, match="Try a smaller learning_rate"):
        search = GridSearchCV(model, grid, cv=2, error_score=-1.0).fit(*digits)
    assert search.cv_results_["mean_test_score"][1] == -1.0
    assert search.best_params_ == {"learning_rate": 0.01}
    with pytest.raises(FloatingPointError, match="Try a smaller learning_rate"):
        GridSearchCV(model, grid, cv=2, error_score="raise").fit(*digits)


def test_refit_may_choose_by_itself(digits):
    """The cheapest of those that are good enough: a rule that scikit-learn takes as a function."""
    model = FineTuneClassifier(Counting(), max_epochs=1, random_state=0, **IMAGES)
    grid = {"strategy": ["fine_tuning", "feature_extraction"]}
    scoring = {"accuracy": "accuracy", "trained": lambda model, X, y: -model.trainable_parameters_}
    search = GridSearchCV(
        model, grid, scoring=scoring, cv=2, refit=lambda results: results["mean_test_trained"].argmax()
    )
    assert search.fit(*digits).best_params_ == {"strategy": "feature_extraction"}
    assert search.best_estimator_.strategy_.trains_backbone is False


def test_cross_validation_of_images(image_paths):
    X, y = image_paths
    model = make_pipeline(PretrainedFeatureTransformer(image_size=32), LogisticRegression(max_iter=1000))
    assert cross_val_score(model, np.array(X, dtype=object), y, cv=2, error_score="raise").mean() > 0.5


@pytest.mark.parametrize(
    "model",
    [
        FineTuneClassifier(),
        FineTuneClassifier(strategy=PartialFineTuning(n_groups=3), callbacks=[], net_params={"max_epochs": 1}),
        PretrainedFeatureTransformer("resnet50.a1_in1k", weights="file.safetensors", image_size=64),
    ],
)
def test_clone_and_repr(model):
    copied = clone(model)
    assert repr(copied) == repr(model)
    assert copied.get_params(deep=False).keys() == model.get_params(deep=False).keys()
    assert eval(repr(model), globals()).get_params().keys() == model.get_params().keys()


def test_fitted_clone_is_unfitted(digits):
    model = FineTuneClassifier(Counting(), "feature_extraction", **IMAGES).fit(*digits)
    assert "net_" not in vars(clone(model))


def test_parameters_of_a_named_strategy_can_be_set():
    model = FineTuneClassifier(strategy="partial").set_params(strategy__n_groups=3)
    assert repr(model.strategy) == "PartialFineTuning(n_groups=3)"
    assert model.get_params()["strategy__n_groups"] == 3
    with pytest.raises(ValueError, match="Invalid parameter 'rank' for estimator PartialFineTuning"):
        model.set_params(strategy__rank=3)
