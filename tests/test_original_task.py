"""What is left of the old task: the head that a backbone brings, its predictions, and the ways that keep it."""

import pickle

import numpy as np
import pytest
import timm
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from small_models import go_on_from, make_model, make_network, three_digits

from sktl import FineTuneClassifier, PretrainedFeatureTransformer
from sktl.backbones import load_backbone
from sktl.exceptions import BackboneError
from sktl.strategies import (
    STRATEGIES,
)

# The head that a backbone brings --------------------------------------------------------------------------------------


def expected_scores(network, X):
    """What the published network says, on images prepared by sktl."""
    model = FineTuneClassifier(network, "feature_extraction", image_shape=(8, 8), image_size=32, dtype="float32")
    embeddings = model.fit(*three_digits()).transform(X)
    with torch.no_grad():
        return network.get_classifier()(torch.from_numpy(embeddings))


def test_a_network_of_ones_own_brings_its_classifier(network):
    model = FineTuneClassifier(network, "feature_extraction", image_shape=(8, 8), image_size=32, dtype="float32")
    X, y = three_digits()
    model.fit(X, y)
    scores = expected_scores(network, X)
    np.testing.assert_allclose(model.predict_proba_original(X), scores.softmax(1), atol=1e-6)
    np.testing.assert_array_equal(model.predict_original(X), scores.argmax(1))
    np.testing.assert_array_equal(model.original_classes_, np.arange(7))
    assert model.score_original(X, scores.argmax(1).numpy()) == 1.0


def test_the_head_of_the_whole_network_is_found(network):
    backbone = load_backbone(network, image_size=32)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(backbone.original_head.module(backbone.module(images)), network(images))


@pytest.mark.parametrize("form", ["state", "file"])
def test_weights_bring_their_classifier(network, tmp_path, form):
    import safetensors.torch

    weights = network.state_dict()
    if form == "file":
        safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
        weights = tmp_path / "weights.safetensors"
    head = load_backbone("test_resnet", weights, image_size=32).original_head
    assert torch.equal(head.module.weight, network.get_classifier().weight)
    assert len(head.classes) == 7


def test_imagenet_classes_have_names(network):
    with torch.random.fork_rng():
        weights = timm.create_model("test_resnet", num_classes=1000).state_dict()
    classes = load_backbone("test_resnet", weights, image_size=32).original_head.classes
    assert classes[0] == "tench, Tinca tinca"
    assert len(set(classes)) == 1000


@pytest.mark.parametrize(
    ("backbone", "weights"), [("sktl/tiny", "pretrained"), ("test_resnet", None), (make_network(), "pretrained")]
)
def test_where_there_is_no_old_head_the_error_says_so(backbone, weights):
    X, y = three_digits()
    model = FineTuneClassifier(backbone, "feature_extraction", weights=weights, image_shape=(8, 8), image_size=32)
    model.fit(X, y)
    assert not hasattr(model, "original_classes_")
    for ask in (model.predict_original, model.predict_proba_original, lambda X: model.score_original(X, y)):
        with pytest.raises(BackboneError, match="brought no classifier of an old task"):
            ask(X)


def test_several_classifiers_are_none():
    with torch.random.fork_rng():
        network = timm.create_model("deit_tiny_distilled_patch16_224", depth=1, img_size=32, num_classes=5)
    assert load_backbone(network, image_size=32).original_head is None


def test_the_head_is_no_part_of_what_embeddings_are_known_by(network):
    weights = network.state_dict()
    bare = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    with_head, without = (load_backbone("test_resnet", state, image_size=32) for state in (weights, bare))
    assert with_head.original_head is not None
    assert without.original_head is None
    assert with_head.fingerprint == without.fingerprint
    assert with_head.view.key == without.view.key


def test_only_what_can_use_the_head_pickles_it(network):
    images = {"image_shape": (8, 8), "image_size": 32}
    transformer = PretrainedFeatureTransformer("test_resnet", weights=network.state_dict(), **images)
    X, y = three_digits()
    assert pickle.loads(pickle.dumps(transformer.fit(X))).backbone_.original_head is None
    model = FineTuneClassifier("test_resnet", weights=network.state_dict(), max_epochs=1, **images).fit(X, y)
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict_proba_original(X), model.predict_proba_original(X))
    np.testing.assert_array_equal(restored.original_classes_, model.original_classes_)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_answers_for_the_old_task(network, strategy):
    X, y = three_digits()
    images = {"image_shape": (8, 8), "image_size": 32}
    model = FineTuneClassifier(network, strategy, max_epochs=1, random_state=0, **images).fit(X, y)
    proba = model.predict_proba_original(X)
    assert proba.shape == (len(X), 7)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(model.original_classes_[proba.argmax(axis=1)], model.predict_original(X))


# A fitted classifier as backbone --------------------------------------------------------------------------------------


def test_a_fitted_classifier_is_the_backbone_of_the_next(old_model, old_task):
    X, y = three_digits()
    before = pickle.dumps(old_model)
    model = go_on_from(old_model, "feature_extraction").fit(X, y)
    np.testing.assert_array_equal(model.original_classes_, old_model.classes_)
    np.testing.assert_allclose(model.predict_proba_original(X), old_model.predict_proba(X), atol=1e-6)
    assert model.score_original(*old_task) == old_model.score(*old_task)
    np.testing.assert_array_equal(model.transform(X), old_model.transform(X))
    go_on_from(old_model, "fine_tuning").fit(X, y)
    assert pickle.dumps(old_model) == before


def test_a_fitted_classifier_survives_clone_search_and_pickle(old_model):
    X, y = three_digits()
    model = clone(go_on_from(old_model, "feature_extraction"))
    assert model.backbone is old_model
    search = GridSearchCV(model, {"strategy": ["feature_extraction", "lp_ft"]}, cv=2, error_score="raise").fit(X, y)
    restored = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(restored.predict_proba(X), search.predict_proba(X))
    best = search.best_estimator_
    np.testing.assert_array_equal(best.predict_proba_original(X), restored.best_estimator_.predict_proba_original(X))


def test_a_fitted_classifier_gives_embeddings_to_the_transformer(old_model):
    X, _ = three_digits()
    transformer = PretrainedFeatureTransformer(old_model, image_shape=(8, 8), dtype="float32")
    np.testing.assert_array_equal(transformer.fit_transform(X), old_model.transform(X))


def test_an_unfitted_classifier_is_no_backbone():
    with pytest.raises(NotFittedError, match=r"^The FineTuneClassifier given as backbone= is not fitted yet"):
        make_model().set_params(backbone=FineTuneClassifier()).fit(*three_digits())


def test_a_fitted_backbone_takes_another_size_of_images(old_model):
    model = go_on_from(old_model, "feature_extraction", image_size=24).fit(*three_digits())
    assert model.backbone_.data_config["input_size"] == [3, 24, 24]
    assert old_model.backbone_.data_config["input_size"] == [3, 16, 16]


def test_a_fitted_backbone_takes_no_weights(old_model):
    with pytest.raises(BackboneError, match="'weights' parameter is for named backbones"):
        go_on_from(old_model, "feature_extraction", weights=None).fit(*three_digits())


# Labels of the old task -----------------------------------------------------------------------------------------------


def test_old_labels_may_be_column_numbers(old_model, old_task):
    model = go_on_from(old_model, "feature_extraction").fit(*three_digits())
    X, y = old_task
    columns = np.searchsorted(old_model.classes_, y)
    assert model.score_original(X, columns) == model.score_original(X, y)
    weight = (model.predict_original(X) == y).astype(float)
    assert model.score_original(X, y, sample_weight=weight) == 1.0


def test_unknown_old_labels_are_named(old_model, old_task):
    model = go_on_from(old_model, "feature_extraction").fit(*three_digits())
    with pytest.raises(ValueError, match=r"y holds labels that are none of the old task's 3 classes: \['digit 9'\]"):
        model.score_original(old_task[0][:1], ["digit 9"])
