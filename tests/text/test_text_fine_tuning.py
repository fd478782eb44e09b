"""The ways of transfer on an encoder of texts."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import sktl
from sktl import FineTuneClassifier, FineTuneRegressor, PretrainedFeatureTransformer
from sktl.backbones import PADDING, load_backbone
from sktl.cli import main
from sktl.exceptions import InputError, InputWarning, StrategyError
from sktl.inputs import open_texts
from sktl.strategies import STRATEGIES, GradualUnfreezing, JointTraining, LoRA, PartialFineTuning
from sktl.training import Targets, TrainingData, build_network, zero_linear
from sktl.training.prefix import find_prefix

LONG = "a good film and a bad one , " * 30


def make_model(backbone, strategy="lp_ft", **parameters):
    defaults = {"max_epochs": 2, "batch_size": 8, "random_state": 0, "dtype": "float32"}
    return FineTuneClassifier(backbone, strategy, **{**defaults, **parameters})


def weights_of(model):
    return {name: value.clone() for name, value in model.backbone_.module.state_dict().items()}


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"lwf"}))
def test_every_strategy_fits_texts(bert, reviews, strategy):
    texts, y = reviews
    model = make_model(bert, strategy).fit(texts, y)
    assert model.input_kind_ == "texts"
    proba = model.predict_proba(texts)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-6)
    loaded = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(loaded.predict_proba(texts), proba)
    again = make_model(bert, strategy).fit(texts, y)
    np.testing.assert_array_equal(again.predict_proba(texts), proba)


def test_training_learns_from_texts(bert, reviews):
    texts, y = reviews
    model = make_model(bert, "fine_tuning", max_epochs=8, learning_rate=1e-2).fit(texts, y)
    assert model.history_[-1]["train_loss"] < 0.5 * model.history_[0]["train_loss"]
    assert model.score(texts, y) > 0.95


def test_frozen_layers_stay_as_they_were(bert, reviews):
    before = {name: value.clone() for name, value in load_backbone(bert).module.state_dict().items()}
    model = make_model(bert, PartialFineTuning(n_groups=1)).fit(*reviews)
    after = weights_of(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("encoder.encoder.layer.1.") for name in changed)
    from_stage = make_model(bert, PartialFineTuning(from_stage="encoder.encoder.layer.1")).fit(*reviews)
    torch.testing.assert_close(weights_of(from_stage), after, atol=0, rtol=0)
    assert all(torch.equal(before[name], value) for name, value in load_backbone(bert).module.state_dict().items())


def test_layer_groups_are_embeddings_and_layers(bert):
    groups = load_backbone(bert).layer_groups
    assert [{".".join(name.split(".")[:4]) for name in group} for group in groups[1:]] == [
        {"encoder.encoder.layer.0"},
        {"encoder.encoder.layer.1"},
    ]
    assert all(name.startswith("encoder.embeddings.") for name in groups[0])


def test_gradual_unfreezing_goes_from_the_top_down(bert, reviews):
    before = load_backbone(bert).module.state_dict()
    after = weights_of(make_model(bert, GradualUnfreezing(epochs_per_group=1), max_epochs=2).fit(*reviews))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in changed} == {"encoder"}  # the embeddings' turn would come in the third epoch
    assert any("layer.0" in name for name in changed)


def test_lora_on_attention_alone(bert, reviews):
    before = load_backbone(bert).module.state_dict()
    model = make_model(bert, LoRA(rank=2, target_modules=["query", "value"]), learning_rate=1e-2).fit(*reviews)
    after = weights_of(model)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {"query", "value"}
    added = 2 * 2 * 2 * (16 * 2)  # layers x modules x matrices x (width x rank)
    assert model.trainable_parameters_ == added + model.backbone_.width * 2 + 2


def test_head_is_the_one_on_the_embeddings_of_the_transformer(bert, reviews):
    texts, y = reviews
    model = make_model(bert, "feature_extraction").fit(texts, y)
    embeddings = PretrainedFeatureTransformer(bert, dtype="float32").fit_transform(texts)
    np.testing.assert_array_equal(model.transform(texts), embeddings)


def test_repeated_texts_count_like_weights(bert, reviews):
    texts, y = reviews
    repeated = make_model(bert).fit([*texts, *texts[:10]], [*y, *y[:10]])
    weighted = make_model(bert).fit(texts, y, sample_weight=[2.0] * 10 + [1.0] * (len(texts) - 10))
    torch.testing.assert_close(weights_of(repeated), weights_of(weighted), atol=0, rtol=0)


def test_early_stopping_and_validation_texts(bert, reviews):
    texts, y = reviews
    model = make_model(bert, "fine_tuning", early_stopping=True, validation_fraction=0.3, max_epochs=3).fit(texts, y)
    assert len(model.validation_indices_)
    assert "valid_loss" in model.history_[-1]
    given = make_model(bert, "fine_tuning").fit(texts[:30], y[:30], X_val=pd.Series(texts[30:]), y_val=y[30:])
    assert "valid_loss" in given.history_[-1]


def test_regressor_on_texts(bert, reviews):
    texts, _ = reviews
    lengths = np.array([float(len(text)) for text in texts])
    for strategy in ("feature_extraction", "lp_ft"):
        model = FineTuneRegressor(bert, strategy, max_epochs=2, random_state=0).fit(texts, lengths)
        assert model.predict(texts).shape == (40,)
        assert model.score(texts, lengths) > 0.5


def test_bad_texts_are_named_in_fit_and_predict(bert, reviews):
    texts, y = list(reviews[0]), reviews[1]
    model = make_model(bert).fit(texts, y)
    texts[3] = None
    for strategy in ("feature_extraction", "fine_tuning"):
        with pytest.raises(InputError, match="row 3: missing value"):
            make_model(bert, strategy).fit(texts, y)
    with pytest.raises(InputError, match="row 3: missing value"):
        model.predict(texts)
    with pytest.raises(InputError, match="column of texts, got ndarray"):
        model.predict(np.zeros((2, 3)))


@pytest.mark.parametrize("strategy", ["lp_ft", "fine_tuning"])
def test_truncated_texts_are_warned_of_once(bert, reviews, strategy):
    texts, y = reviews
    with pytest.warns(InputWarning, match="2 of 42 texts are longer than the 40 tokens") as caught:
        make_model(bert, strategy, cache_bytes=0).fit([*texts, LONG, LONG + "!"], [*y, 0, 1])
    assert sum(issubclass(warning.category, InputWarning) for warning in caught) == 1


def test_batches_are_as_long_as_their_longest_text(bert):
    texts = ["good", "a very good film , so good and so funny and not dull", "bad"]
    rows = open_texts(texts, load_backbone(bert).tokenizer)
    data = TrainingData(rows, Targets(np.array([0, 1, 0]), np.ones(3)), None)
    short, _ = data.__getitems__([0, 2])
    both, _ = data.__getitems__([0, 1])
    assert short.shape == (2, 3)
    assert both.shape == (2, 15)
    assert (both[0, 3:] == PADDING).all()


def test_no_prefix_is_split_off_an_encoder(bert):
    """What comes after a cut must know which tokens are padding."""
    backbone = load_backbone(bert)
    network = build_network(backbone, zero_linear(backbone.width, 2), PartialFineTuning(), 0)
    assert find_prefix(network, torch.ones((2, 5), dtype=torch.int32)) is None


def test_strategies_and_heads_can_be_searched(bert, reviews):
    texts, y = reviews
    search = GridSearchCV(make_model(bert, max_epochs=1), {"strategy": ["feature_extraction", "partial"]}, cv=2)
    assert search.fit(texts, y).best_score_ > 0.5
    # What a trained encoder makes of texts serves other models as well.
    model = make_model(bert, "fine_tuning").fit(texts, y)
    assert make_pipeline(model, LogisticRegression()).fit(texts, y).score(texts, y) > 0.5


@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
def test_saved_without_pickle(bert, reviews, tmp_path, strategy):
    texts, y = reviews
    model = make_model(bert, strategy).fit(texts, y)
    path = tmp_path / "model.sktl"
    sktl.save(model, path)
    np.testing.assert_array_equal(sktl.load(path).predict_proba(texts), model.predict_proba(texts))
    assert "texts of up to 40 tokens" in str(sktl.inspect(path))


def test_default_learning_rate_is_smaller_than_for_images(bert, reviews):
    default = make_model(bert, "fine_tuning", max_epochs=1).fit(*reviews)
    same = make_model(bert, "fine_tuning", max_epochs=1, learning_rate=default.strategy_.learning_rate * 0.3)
    torch.testing.assert_close(weights_of(default), weights_of(same.fit(*reviews)), atol=0, rtol=0)


@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
def test_training_goes_on(bert, reviews, strategy):
    texts, y = reviews
    model = make_model(bert, strategy, learning_rate=1e-2)
    for _ in range(3):
        model.partial_fit(texts[:20], y[:20], classes=[0, 1])
        model.partial_fit(texts[20:], y[20:])
    assert model.score(texts, y) > 0.9
    with pytest.warns(InputWarning, match="1 of 2 texts"):
        model.partial_fit(["good", LONG + "?"], [1, 0])
    warm = make_model(bert, strategy, warm_start=True).fit(texts, y)
    assert warm.fit(texts, y).score(texts, y) > 0.5


def test_the_old_task_of_an_encoder(bert, reviews):
    """Encoders bring no classifier; a fitted estimator does, and then the old task can be kept."""
    texts, praise = reviews
    is_long = [len(text) > 60 for text in texts]
    with pytest.raises(StrategyError, match="needs the classifier of the old task"):
        make_model(bert, "lwf").fit(texts, is_long)
    old = make_model(bert, "fine_tuning", learning_rate=1e-2, max_epochs=5).fit(texts, praise)
    for strategy in ("lwf", JointTraining(texts, praise)):
        model = make_model(old, strategy).fit(texts, is_long)
        assert model.score(texts, is_long) > 0.8
        assert model.score_original(texts, praise) > 0.8
    assert PretrainedFeatureTransformer(old, dtype="float32").fit_transform(texts).shape == (40, 16)


def test_reference_to_a_folder(bert, reviews, tmp_path):
    """What is kept is the head; the encoder is found again where it was, and must be the same."""
    texts, y = reviews
    model = make_model(bert, "feature_extraction", persist="reference").fit(texts, y)
    path = tmp_path / "model.sktl"
    sktl.save(model, path)
    np.testing.assert_array_equal(sktl.load(path, trusted=[bert]).predict_proba(texts), model.predict_proba(texts))
    whole = pickle.dumps(make_model(bert, "feature_extraction").fit(texts, y))
    assert len(pickle.dumps(model)) < len(whole)


def test_models_of_texts_are_not_given_the_names_of_files(bert, reviews, tmp_path, capsys):
    texts, y = reviews
    sktl.save(make_model(bert, "feature_extraction").fit(texts, y), tmp_path / "model.sktl")
    assert main(["predict", str(tmp_path / "model.sktl"), "review.txt"]) == 2
    assert "`sktl predict` takes images, and this model was fitted on texts." in capsys.readouterr().err
