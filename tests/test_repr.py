"""What an estimator prints can be typed in again, and its picture in a notebook says what it does."""

import html

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_html_repr
from small_models import three_digits
from torch import nn

from sktl import FineTuneClassifier, FineTuneRegressor, PretrainedFeatureTransformer, TextStatistics, strategies
from sktl.strategies import STRATEGIES, FineTuning, LoRA, PartialFineTuning

NAMES = {
    **{name: getattr(strategies, name) for name in strategies.__all__},
    **{cls.__name__: cls for cls in (FineTuneClassifier, FineTuneRegressor)},
    **{cls.__name__: cls for cls in (PretrainedFeatureTransformer, TextStatistics)},
    "nan": np.nan,
}

ESTIMATORS = [
    PretrainedFeatureTransformer(),
    PretrainedFeatureTransformer("resnet50.a1_in1k", layer="layer3", pooling="max", image_size=(64, 96), tta="hflip"),
    TextStatistics(),
    FineTuneClassifier(),
    FineTuneClassifier("hf-hub:timm/x", LoRA(rank=2), class_weight={"a": 1, "b": 2.5}, random_state=3, warm_start=True),
    FineTuneClassifier(strategy=FineTuning(layer_decay=0.7), net_params={"max_epochs": 1}, memory="folder", root="/x"),
    FineTuneRegressor(),
    FineTuneRegressor(
        strategy=PartialFineTuning(n_groups=2), tol=1e-3, early_stopping=True, data_config={"mean": (0,)}
    ),
    *(FineTuneClassifier(strategy=name) for name in STRATEGIES),
    *(FineTuneRegressor(strategy=strategy()) for strategy in STRATEGIES.values()),
]


def plain(params):
    """Parameters with objects by what they hold."""
    return {
        name: (type(value), plain(value.get_params())) if hasattr(value, "get_params") else value
        for name, value in params.items()
    }


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_repr_goes_round(estimator):
    again = eval(repr(estimator), dict(NAMES))
    assert type(again) is type(estimator)
    assert plain(again.get_params()) == plain(estimator.get_params())
    assert repr(again) == repr(estimator)


@pytest.mark.parametrize("name", STRATEGIES)
def test_repr_of_strategies_goes_round(name):
    strategy = STRATEGIES[name]()
    for value in (0.123, 2):  # a changed parameter is shown, be it a number of one kind or the other
        for key in strategy.get_params():
            changed = STRATEGIES[name](**{key: value})
            assert eval(repr(changed), dict(NAMES)).get_params() == changed.get_params()


@pytest.mark.parametrize("cls", [FineTuneClassifier, FineTuneRegressor])
def test_picture_shows_strategy_and_backbone(cls):
    model = make_pipeline("passthrough", cls("mobilenetv3_small_100.lamb_in1k", strategy=LoRA(rank=3)))
    html = estimator_html_repr(model)
    for shown in (cls.__name__, "mobilenetv3_small_100.lamb_in1k", "LoRA(rank=3)", "backbone", "strategy"):
        assert shown in html


@pytest.mark.parametrize(
    ("estimator", "caption"),
    [
        (PretrainedFeatureTransformer("mobilenetv3_small_100"), "mobilenetv3_small_100"),
        (PretrainedFeatureTransformer(nn.Flatten()), "Flatten"),
        (FineTuneClassifier(strategy="bitfit"), "bitfit · sktl/tiny"),
        (FineTuneRegressor(FineTuneClassifier(), LoRA(rank=3)), "LoRA(rank=3) · FineTuneClassifier"),
    ],
    ids=str,
)
def test_picture_that_is_not_opened_has_them_below_the_name(estimator, caption):
    assert f'<div class="caption">{caption}</div>' in estimator_html_repr(estimator)


def test_what_was_fitted_is_in_the_picture_in_short():
    X, y = three_digits()
    model = FineTuneClassifier(strategy="feature_extraction", image_shape=(8, 8), image_size=32).fit(X, y)
    page = html.unescape(estimator_html_repr(model))
    assert "Backbone('sktl/tiny', 256)" in page
    assert "FeatureExtraction()" in page
    assert "trainable_parameters_" in page
