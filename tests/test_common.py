"""scikit-learn's own estimator checks, with full tags and nothing excused."""

import os

os.environ.setdefault("SCIPY_ARRAY_API", "1")

import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from sktl import FineTuneClassifier, FineTuneRegressor, PretrainedFeatureTransformer, ScalarMix
from sktl.strategies import FeatureExtraction

FAMILIES = ["test_resnet", "test_vit", "test_convnext"]

ESTIMATORS = [
    PretrainedFeatureTransformer(image_size=32),
    FineTuneClassifier(strategy="feature_extraction", image_size=32),
    FineTuneClassifier(image_size=16, max_epochs=1, batch_size=64),
    FineTuneRegressor(strategy="feature_extraction", image_size=32),
    # In so few epochs the usual learning rate does not come to rest, and a check asks for a score.
    FineTuneRegressor(image_size=16, max_epochs=1, batch_size=64, learning_rate=3e-5),
    *(PretrainedFeatureTransformer(name, weights=None, image_size=32) for name in FAMILIES),
    *(FineTuneClassifier(name, "feature_extraction", weights=None, image_size=32) for name in FAMILIES),
    # Random features say less than pretrained ones, and a check asks for a score: the head is penalised less.
    *(FineTuneRegressor(name, FeatureExtraction(C=100), weights=None, image_size=32) for name in FAMILIES),
    ScalarMix(),
]

EACH_KIND = [next(each for each in ESTIMATORS if type(each) is kind) for kind in dict.fromkeys(map(type, ESTIMATORS))]

# scikit-learn exports these, but parametrize_with_checks does not yield them.
BY_HAND = ["check_dataframe_column_names_consistency", "check_param_validation"]
BY_HAND_OF_TRANSFORMERS = [
    "check_get_feature_names_out_error",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_global_output_transform_pandas",
    "check_set_output_transform_polars",
    "check_global_set_output_transform_polars",
]


@parametrize_with_checks(ESTIMATORS, expected_failed_checks={})
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# The checks of set_output fit on a frame and transform an array, and the reverse: scikit-learn's own warn too.
@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
@pytest.mark.filterwarnings("ignore:X has feature names, but:UserWarning")
@pytest.mark.parametrize("check", [*BY_HAND, *BY_HAND_OF_TRANSFORMERS])
@pytest.mark.parametrize("estimator", EACH_KIND, ids=lambda estimator: type(estimator).__name__)
def test_checks_that_are_not_yielded(estimator, check):
    getattr(estimator_checks, check)(type(estimator).__name__, clone(estimator))


@pytest.mark.parametrize("kind", [type(each) for each in EACH_KIND])
def test_wrong_parameter_is_told_of_the_class_that_was_called(kind):
    with pytest.raises(TypeError, match=rf"^{kind.__name__}\.__init__\(\) got an unexpected keyword argument 'bogus'"):
        kind(bogus=1)
