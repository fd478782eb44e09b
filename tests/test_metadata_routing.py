"""sample_weight reaches our estimators through scikit-learn's meta-estimators, each weight with its own row."""

from typing import ClassVar

import numpy as np
import pytest
import sklearn
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier, VotingRegressor
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
    cross_val_score,
    cross_validate,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import make_pipeline

from sktl import FineTuneClassifier, FineTuneRegressor, PretrainedFeatureTransformer

SEARCH = {"cv": 2, "error_score": "raise"}


class Recording:
    """Writes down what each fit is given."""

    fits: ClassVar[list] = []

    def fit(self, X, y, sample_weight=None):
        Recording.fits.append((X, sample_weight))
        return super().fit(X, y, sample_weight)


class Classifier(Recording, FineTuneClassifier):
    """A classifier that records."""


class Regressor(Recording, FineTuneRegressor):
    """A regressor that records."""


@pytest.fixture(autouse=True)
def routing():
    Recording.fits.clear()
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.fixture(scope="module")
def rows(image_arrays):
    """Flattened pictures, whose first pixel says which they are; labels; a weight for each."""
    images, y = image_arrays[0].copy(), image_arrays[1]
    images[:, 0, 0] = np.arange(30)[:, None]
    return images.reshape(30, -1), y, np.arange(30) % 4 + 1.0


def make_model(kind=Classifier, **parameters):
    model = kind(strategy="feature_extraction", image_size=32, image_shape=(48, 64, 3), random_state=0, **parameters)
    return model.set_fit_request(sample_weight=True).set_score_request(sample_weight=False)


def unweighted_accuracy():
    return get_scorer("accuracy").set_score_request(sample_weight=False)


def assert_each_fit_got_its_weights(weight):
    assert Recording.fits
    for X, given in Recording.fits:
        np.testing.assert_array_equal(given, weight[np.asarray(X)[:, 0].astype(int)])


META = {
    "Pipeline": lambda: make_pipeline("passthrough", make_model()),
    "GridSearchCV": lambda: GridSearchCV(make_model(), {"strategy__C": [0.1, 1.0]}, **SEARCH),
    "RandomizedSearchCV": lambda: RandomizedSearchCV(make_model(), {"strategy__C": [0.1]}, n_iter=1, **SEARCH),
    "HalvingGridSearchCV": lambda: HalvingGridSearchCV(
        make_model(), {"strategy__C": [0.1, 1.0]}, resource="max_epochs", max_resources=2, random_state=0, **SEARCH
    ),
    "a pipeline in a search": lambda: GridSearchCV(
        make_pipeline("passthrough", make_model()),
        {"classifier__strategy__C": [0.1]},
        scoring=unweighted_accuracy(),
        **SEARCH,
    ),
    "VotingClassifier": lambda: VotingClassifier([("a", make_model()), ("b", make_model())]),
    "StackingClassifier": lambda: StackingClassifier([("a", make_model())], LogisticRegression(max_iter=1000), cv=2),
    "CalibratedClassifierCV": lambda: CalibratedClassifierCV(make_model(), cv=2).set_fit_request(sample_weight=True),
    "FixedThresholdClassifier": lambda: FixedThresholdClassifier(make_model()),
    "TunedThresholdClassifierCV": lambda: TunedThresholdClassifierCV(make_model(), cv=2, scoring=unweighted_accuracy()),
    "OneVsRestClassifier": lambda: OneVsRestClassifier(make_model()),
    "OneVsOneClassifier": lambda: OneVsOneClassifier(make_model()),
}
OF_TWO_CLASSES = {"FixedThresholdClassifier", "TunedThresholdClassifierCV"}


@pytest.mark.parametrize("name", META)
def test_weights_reach_the_fit_of_their_rows(name, rows):
    X, y, weight = rows
    y = (y == "disc").astype(int) if name in OF_TWO_CLASSES else y
    META[name]().fit(X, y, sample_weight=weight)
    assert_each_fit_got_its_weights(weight)


def test_weights_of_bagging_decide_what_is_drawn(rows):
    X, y, weight = rows
    weight = np.where(np.arange(30) % 5 == 0, 0.0, weight)
    BaggingClassifier(make_model(), n_estimators=3, random_state=0).fit(X, y, sample_weight=weight)
    assert len(Recording.fits) == 3
    for drawn, given in Recording.fits:
        counts = np.bincount(np.asarray(drawn)[:, 0].astype(int), weights=given, minlength=30)
        assert counts.sum() == 30
        assert not counts[weight == 0].any()


@pytest.mark.parametrize("score", [cross_validate, cross_val_score])
def test_weights_reach_the_folds(score, rows):
    X, y, weight = rows
    score(make_model(), X, y, params={"sample_weight": weight}, **SEARCH)
    assert len(Recording.fits) == 2
    assert_each_fit_got_its_weights(weight)


def test_weights_reach_the_score_too(rows):
    X, y, weight = rows
    model = make_model().set_score_request(sample_weight=True)
    weight = np.where(np.arange(30) < 15, 0.0, 1.0)
    both = np.tile(np.arange(15, 30), 2)  # the rows that count in the second fold alone
    scores = cross_val_score(
        model.set_fit_request(sample_weight=False), X, y, params={"sample_weight": weight}, cv=[(both, np.arange(30))]
    )
    plain = model.fit(X[both], y[both]).score(X[15:], y[15:])
    assert scores[0] == pytest.approx(plain)


@pytest.mark.parametrize(("kind", "meta"), [(Classifier, MultiOutputClassifier), (Regressor, MultiOutputRegressor)])
def test_weights_of_several_outputs(kind, meta, rows):
    X, y, weight = rows
    Y = np.c_[y == "disc", y == "square"].astype(int if kind is Classifier else float)
    meta(make_model(kind)).fit(X, Y, sample_weight=weight)
    assert len(Recording.fits) == 2
    assert_each_fit_got_its_weights(weight)


def test_weights_of_regression(rows):
    X, _, weight = rows
    VotingRegressor([("a", make_model(Regressor))]).fit(X, X.mean(axis=1), sample_weight=weight)
    assert_each_fit_got_its_weights(weight)


def test_weights_that_nobody_asked_for_are_refused(rows):
    X, y, weight = rows
    model = Classifier(strategy="feature_extraction", image_size=32, image_shape=(48, 64, 3))
    with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError, match="sample_weight"):
        GridSearchCV(model, {"strategy__C": [0.1]}, cv=2).fit(X, y, sample_weight=weight)


def test_a_transformer_stands_before_a_weighted_model(rows):
    X, y, weight = rows
    embed = PretrainedFeatureTransformer(image_shape=(48, 64, 3), image_size=32)
    model = LogisticRegression(max_iter=1000).set_fit_request(sample_weight=True)
    weight = (y != "stripes").astype(float)
    fitted = make_pipeline(embed, model).fit(X, y, sample_weight=weight)
    assert set(fitted.predict(X[y != "stripes"])) == {"disc", "square"}
