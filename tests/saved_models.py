"""Fitted models for the tests of files and pickles, small enough to be made anew in each module."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sktl import FineTuneClassifier, PretrainedFeatureTransformer
from sktl.strategies import PartialFineTuning

IMAGES = {"image_shape": (8, 8), "image_size": 32}


def digits():
    """Sixty handwritten digits and their names."""
    X, y = load_digits(return_X_y=True)
    return X[:60], np.array([f"class {label}" for label in y[:60]])


def make_classifier(strategy="feature_extraction", **parameters):
    settings = {"strategy": strategy, "max_epochs": 1, "random_state": 0, **IMAGES, **parameters}
    return FineTuneClassifier(**settings)


def make_embed(**parameters):
    return PretrainedFeatureTransformer(**{**IMAGES, **parameters})


def make_pipe():
    return make_pipeline(make_embed(), LogisticRegression(max_iter=1000))


def make_search():
    grid = {"strategy": ["feature_extraction", PartialFineTuning()]}
    return GridSearchCV(make_classifier(), grid, cv=2, error_score="raise")


MAKERS = {
    "feature_extraction": make_classifier,
    "lp_ft": lambda: make_classifier("lp_ft"),
    "pipeline": make_pipe,
    "search": make_search,
}
