"""Inside scikit-learn's meta-estimators: one real fit and predict of each, with images as paths and as arrays.

Some of them ask for tables. Those get the paths as a table of one column, and arrays as flattened images.
"""

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    BaggingClassifier,
    BaggingRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import RFECV
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_validate,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier, OutputCodeClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import make_pipeline, make_union
from sklearn.semi_supervised import SelfTrainingClassifier

from sktl import FineTuneClassifier, FineTuneRegressor, PretrainedFeatureTransformer

SEARCH = {"cv": 2, "error_score": "raise"}


def make_model(strategy="feature_extraction", **parameters):
    return FineTuneClassifier(strategy=strategy, image_size=32, max_epochs=1, random_state=0, **parameters)


def make_regressor(**parameters):
    return FineTuneRegressor(strategy="feature_extraction", image_size=32, **parameters)


def make_embed(**parameters):
    return PretrainedFeatureTransformer(image_size=32, **parameters)


@pytest.fixture(params=["paths", "arrays"])
def images(request, image_paths, image_arrays):
    return image_paths if request.param == "paths" else image_arrays


@pytest.fixture(params=["paths", "arrays"])
def tables(request, image_paths, image_arrays):
    """The same as tables, and what our estimators must know of them."""
    if request.param == "paths":
        return np.array(image_paths[0])[:, None], image_paths[1], {}
    return image_arrays[0].reshape(30, -1), image_arrays[1], {"image_shape": (48, 64, 3)}


def brightness(y):
    """A number for each picture, to regress on."""
    return np.array([{"disc": 1.0, "square": 2.0, "stripes": 4.0}[kind] for kind in y])


META = {
    "Pipeline": lambda: make_pipeline("passthrough", make_model()),
    "Pipeline, lp_ft": lambda: make_pipeline("passthrough", make_model("lp_ft")),
    "GridSearchCV": lambda: GridSearchCV(make_model(), {"strategy__C": [0.1, 1.0]}, **SEARCH),
    "GridSearchCV, lp_ft": lambda: GridSearchCV(make_model("lp_ft"), {"batch_size": [16]}, **SEARCH),
    "RandomizedSearchCV": lambda: RandomizedSearchCV(
        make_model(), {"strategy__C": [0.1, 1.0, 10.0]}, n_iter=2, random_state=0, **SEARCH
    ),
    "HalvingGridSearchCV over epochs": lambda: HalvingGridSearchCV(
        make_model("lp_ft"),
        {"strategy__C": [0.1, 1.0]},
        resource="max_epochs",
        max_resources=2,
        min_resources=1,
        factor=2,
        random_state=0,
        **SEARCH,
    ),
    "HalvingGridSearchCV over rows": lambda: HalvingGridSearchCV(
        make_model(), {"strategy__C": [0.1, 1.0]}, min_resources=12, factor=2, random_state=0, **SEARCH
    ),
    "CalibratedClassifierCV": lambda: CalibratedClassifierCV(make_model(), cv=2),
    "CalibratedClassifierCV, lp_ft": lambda: CalibratedClassifierCV(make_model("lp_ft"), cv=2, method="temperature"),
    "VotingClassifier": lambda: VotingClassifier([("a", make_model()), ("b", make_model("lp_ft"))], voting="soft"),
    "StackingClassifier": lambda: StackingClassifier([("a", make_model())], LogisticRegression(max_iter=1000), cv=2),
    "OneVsRestClassifier": lambda: OneVsRestClassifier(make_model()),
    "OneVsRestClassifier, lp_ft": lambda: OneVsRestClassifier(make_model("lp_ft")),
}


@pytest.mark.parametrize("name", META)
def test_fit_and_predict(name, images):
    X, y = images
    predicted = META[name]().fit(X, y).predict(X)
    assert predicted.shape == y.shape
    assert np.mean(predicted == y) > 0.6


META_OF_TABLES = {
    "BaggingClassifier": lambda **form: BaggingClassifier(make_model(**form), n_estimators=2, random_state=0),
    "BaggingClassifier, lp_ft": lambda **form: BaggingClassifier(
        make_model("lp_ft", **form), n_estimators=2, bootstrap=False, random_state=0
    ),
    "AdaBoostClassifier": lambda **form: AdaBoostClassifier(make_model(**form), n_estimators=2, random_state=0),
    "OutputCodeClassifier": lambda **form: OutputCodeClassifier(make_model(**form), random_state=0),
}


@pytest.mark.parametrize("name", META_OF_TABLES)
def test_fit_and_predict_on_tables(name, tables):
    X, y, form = tables
    predicted = META_OF_TABLES[name](**form).fit(X, y).predict(X)
    assert predicted.shape == y.shape
    assert np.mean(predicted == y) > 0.6


def test_adaboost_takes_arrays_of_images(image_arrays):
    X, y = image_arrays
    assert AdaBoostClassifier(make_model(), n_estimators=2, random_state=0).fit(X, y).score(X, y) > 0.6


# These two turn X into numbers before anybody else sees it.


def test_one_against_one(image_arrays):
    X, y = image_arrays[0].reshape(30, -1), image_arrays[1]
    meta = OneVsOneClassifier(make_model(image_shape=(48, 64, 3))).fit(X, y)
    assert len(meta.estimators_) == 3
    assert meta.score(X, y) > 0.6


def test_self_training(image_arrays):
    X, y = image_arrays[0].reshape(30, -1), image_arrays[1].copy()
    unlabelled = np.arange(30) % 5 == 0
    codes = np.where(unlabelled, -1, np.unique(y, return_inverse=True)[1])
    meta = SelfTrainingClassifier(make_model(image_shape=(48, 64, 3)), threshold=0.5).fit(X, codes)
    assert (meta.labeled_iter_[unlabelled] > 0).any()
    assert np.mean(meta.predict(X)[~unlabelled] == codes[~unlabelled]) > 0.6


# Regression -----------------------------------------------------------------------------------------------------------


REGRESSION = {
    "VotingRegressor": lambda: VotingRegressor([("a", make_regressor())]),
    "StackingRegressor": lambda: StackingRegressor([("a", make_regressor())], Ridge(), cv=2),
    "TransformedTargetRegressor": lambda: TransformedTargetRegressor(
        make_regressor(), func=np.log, inverse_func=np.exp
    ),
    "GridSearchCV": lambda: GridSearchCV(make_regressor(), {"strategy__C": [0.1, 1.0]}, **SEARCH),
}


@pytest.mark.parametrize("name", REGRESSION)
def test_regression(name, images):
    X, y = images[0], brightness(images[1])
    meta = REGRESSION[name]().fit(X, y)
    assert meta.predict(X).shape == y.shape
    assert meta.score(X, y) > 0.3


@pytest.mark.parametrize("kind", [BaggingRegressor, AdaBoostRegressor])
def test_regression_on_tables(kind, tables):
    X, y, form = tables
    meta = kind(make_regressor(**form), n_estimators=3, random_state=0).fit(X, brightness(y))
    assert meta.score(X, brightness(y)) > 0.1


# Several outputs ------------------------------------------------------------------------------------------------------


def test_one_classifier_per_output(images):
    X, y = images
    Y = np.c_[y == "disc", y == "square"].astype(int)
    meta = MultiOutputClassifier(make_model()).fit(X, Y)
    assert meta.predict(X).shape == Y.shape
    assert meta.score(X, Y) > 0.6
    assert [proba.shape for proba in meta.predict_proba(X)] == [(30, 2), (30, 2)]


def test_one_regressor_per_output(images):
    X, Y = images[0], np.c_[brightness(images[1]), -brightness(images[1])]
    assert MultiOutputRegressor(make_regressor()).fit(X, Y).score(X, Y) > 0.3


def test_a_chain_puts_outputs_beside_the_pixels(image_arrays):
    """Each link gets the outputs before it as further columns, so the columns of the picture are chosen by position."""
    X, y = image_arrays[0].reshape(30, -1), image_arrays[1]
    Y = np.c_[y == "disc", y == "square"].astype(int)
    embed = make_embed(image_shape=(48, 64, 3))
    columns = ColumnTransformer([("image", embed, slice(0, X.shape[1]))], remainder="passthrough")
    chain = ClassifierChain(make_pipeline(columns, LogisticRegression(max_iter=1000)), cv=2, random_state=0).fit(X, Y)
    assert chain.estimators_[1][-1].n_features_in_ == 256 + 1
    assert chain.score(X, Y) > 0.6


# What judges a model --------------------------------------------------------------------------------------------------


def test_calibration_of_a_frozen_model(images):
    X, y = images
    meta = CalibratedClassifierCV(FrozenEstimator(make_model().fit(X, y))).fit(X, y)
    assert np.mean(meta.predict(X) == y) > 0.6


@pytest.mark.parametrize("kind", [FixedThresholdClassifier, TunedThresholdClassifierCV])
def test_thresholds(kind, images):
    X, y = images
    assert np.mean(kind(make_model()).fit(X, y == "disc").predict(X) == (y == "disc")) > 0.6


@pytest.mark.parametrize("strategy", ["feature_extraction", "lp_ft"])
def test_cross_validation(strategy, images):
    X, y = images
    assert cross_validate(make_model(strategy), X, y, cv=2, error_score="raise")["test_score"].mean() > 0.5
    assert cross_val_predict(make_model(strategy), X, y, cv=2, method="predict_proba").shape == (len(y), 3)


# Embeddings before other models ---------------------------------------------------------------------------------------


def test_selection_of_embeddings(images):
    X, y = images
    select = RFECV(LogisticRegression(max_iter=1000), step=0.5, cv=2, min_features_to_select=4)
    model = make_pipeline(make_embed(), PCA(12), select).fit(X, y)
    assert 4 <= model[-1].n_features_ <= 12
    assert model.score(X, y) > 0.6


def test_importance_of_embeddings(images):
    X, y = images
    embeddings = make_pipeline(make_embed(), PCA(8)).fit_transform(X)
    model = LogisticRegression(max_iter=1000).fit(embeddings, y)
    importances = permutation_importance(model, embeddings, y, n_repeats=2, random_state=0).importances_mean
    assert importances.shape == (8,)
    assert importances.max() > 0


def test_importance_of_the_picture_beside_other_columns(image_paths):
    """The pictures of a frame are shuffled like any other column."""
    X = pd.DataFrame({"photo": image_paths[0], "noise": np.random.default_rng(0).normal(size=30)})
    columns = ColumnTransformer([("photo", make_embed(), "photo"), ("rest", "passthrough", ["noise"])])
    model = make_pipeline(columns, LogisticRegression(max_iter=1000)).fit(X, image_paths[1])
    photo, noise = permutation_importance(model, X, image_paths[1], n_repeats=2, random_state=0).importances_mean
    assert photo > 0.3 > noise


def test_two_backbones_side_by_side(images):
    X, y = images
    union = make_union(make_embed(), make_embed(layer=1), make_embed(pooling="max"))
    model = make_pipeline(union, LogisticRegression(max_iter=1000)).fit(X, y)
    widths = [transformer.transform(X[:2]).shape[1] for _, transformer in union.transformer_list]
    assert model[-1].n_features_in_ == sum(widths)
    assert len(set(model[0].get_feature_names_out())) == sum(widths)
    assert model.score(X, y) > 0.6


def test_a_fine_tuned_network_as_a_step(images):
    """A classifier that has ``transform`` gives its embeddings to the next step."""
    X, y = images
    model = make_pipeline(make_model("lp_ft"), LogisticRegression(max_iter=1000)).fit(X, y)
    assert model[-1].n_features_in_ == 256
    assert model.score(X, y) > 0.6
