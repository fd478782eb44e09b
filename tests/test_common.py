"""scikit-learn's own estimator checks, with full tags and nothing excused."""

import os

os.environ.setdefault("SCIPY_ARRAY_API", "1")

from sklearn.utils.estimator_checks import parametrize_with_checks

from sktl import FineTuneClassifier, PretrainedFeatureTransformer

ESTIMATORS = [
    PretrainedFeatureTransformer(image_size=32),
    FineTuneClassifier(strategy="feature_extraction", image_size=32),
    FineTuneClassifier(strategy="lp_ft", image_size=32, max_epochs=2, batch_size=64),
]


@parametrize_with_checks(ESTIMATORS, expected_failed_checks={})
def test_scikit_learn_checks(estimator, check):
    check(estimator)
