"""Inside scikit-learn's meta-estimators, with images as paths and as arrays: one real fit and predict of each."""

import numpy as np
import pytest
import sklearn
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_validate,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from sktl import FineTuneClassifier


def make_model(strategy="feature_extraction"):
    return FineTuneClassifier(strategy=strategy, image_size=32, max_epochs=1, random_state=0)


@pytest.fixture(params=["paths", "arrays"])
def images(request, image_paths, image_arrays):
    return image_paths if request.param == "paths" else image_arrays


META = {
    "Pipeline": lambda: make_pipeline("passthrough", make_model()),
    "GridSearchCV": lambda: GridSearchCV(make_model(), {"strategy__C": [0.1, 1.0]}, cv=2, error_score="raise"),
    "HalvingGridSearchCV": lambda: HalvingGridSearchCV(
        make_model("lp_ft"),
        {"strategy__C": [0.1, 1.0]},
        resource="max_epochs",
        max_resources=2,
        min_resources=1,
        factor=2,
        cv=2,
        error_score="raise",
        random_state=0,
    ),
    "CalibratedClassifierCV": lambda: CalibratedClassifierCV(make_model(), cv=2),
    "VotingClassifier": lambda: VotingClassifier([("a", make_model()), ("b", make_model())], voting="soft"),
    "StackingClassifier": lambda: StackingClassifier([("a", make_model())], LogisticRegression(max_iter=1000), cv=2),
    "OneVsRestClassifier": lambda: OneVsRestClassifier(make_model()),
}


@pytest.mark.parametrize("name", META)
def test_fit_and_predict(name, images):
    X, y = images
    predicted = META[name]().fit(X, y).predict(X)
    assert predicted.shape == y.shape
    assert np.mean(predicted == y) > 0.6


def test_calibration_of_a_frozen_model(images):
    X, y = images
    meta = CalibratedClassifierCV(FrozenEstimator(make_model().fit(X, y))).fit(X, y)
    assert np.mean(meta.predict(X) == y) > 0.6


@pytest.mark.parametrize("kind", [FixedThresholdClassifier, TunedThresholdClassifierCV])
def test_thresholds(kind, images):
    X, y = images
    assert np.mean(kind(make_model()).fit(X, y == "disc").predict(X) == (y == "disc")) > 0.6


def test_cross_validation(images):
    X, y = images
    assert cross_validate(make_model(), X, y, cv=2, error_score="raise")["test_score"].mean() > 0.5
    assert cross_val_predict(make_model(), X, y, cv=2, method="predict_proba").shape == (len(y), 3)


@pytest.mark.parametrize("kind", ["Pipeline", "GridSearchCV", "cross_validate"])
def test_sample_weights_are_routed(kind, images):
    X, y = images
    weight = (y != "stripes").astype(float)
    with sklearn.config_context(enable_metadata_routing=True):
        model = make_model().set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
        if kind == "cross_validate":
            result = cross_validate(model, X, y, cv=2, params={"sample_weight": weight}, return_estimator=True)
            fitted = result["estimator"]
        elif kind == "Pipeline":
            fitted = [make_pipeline("passthrough", model).fit(X, y, sample_weight=weight)]
        else:
            search = GridSearchCV(model, {"strategy__C": [0.1]}, cv=2, error_score="raise")
            fitted = [search.fit(X, y, sample_weight=weight)]
    assert all(list(estimator.classes_) == ["disc", "square"] for estimator in fitted)
