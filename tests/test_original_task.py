"""What is left of the old task: the head that a backbone brings, its predictions, and the ways that keep it."""

import pickle

import numpy as np
import pytest
import timm
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from small_models import difference, make_model, make_network, three_digits

from sktl import FineTuneClassifier, PretrainedFeatureTransformer
from sktl.backbones import load_backbone
from sktl.exceptions import BackboneError, InputError, StrategyError
from sktl.strategies import (
    STRATEGIES,
    Batch,
    FineTuning,
    JointTraining,
    LearningWithoutForgetting,
    Start,
    resolve_strategy,
)
from sktl.strategies._remembering import distillation_loss
from sktl.training import build_network


@pytest.fixture(scope="module")
def network():
    """A network as it is published: with a classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=7).eval()


@pytest.fixture(scope="module")
def old_task():
    """Digits 3, 4 and 5 with names."""
    X, y = load_digits(return_X_y=True)
    rows = np.flatnonzero((y[:200] > 2) & (y[:200] < 6))
    return X[rows], np.array([f"digit {label}" for label in y[rows]])


@pytest.fixture(scope="module")
def old_model(old_task):
    """A small network that has learnt the old task."""
    model = make_model("lp_ft", max_epochs=20, learning_rate=0.01).fit(*old_task)
    assert model.score(*old_task) > 0.9
    return model


def on(old_model, strategy, **parameters):
    """A model that goes on from the old one."""
    return make_model(strategy, **parameters).set_params(backbone=old_model)


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
    model = on(old_model, "feature_extraction").fit(X, y)
    np.testing.assert_array_equal(model.original_classes_, old_model.classes_)
    np.testing.assert_allclose(model.predict_proba_original(X), old_model.predict_proba(X), atol=1e-6)
    assert model.score_original(*old_task) == old_model.score(*old_task)
    np.testing.assert_array_equal(model.transform(X), old_model.transform(X))
    on(old_model, "fine_tuning").fit(X, y)
    assert pickle.dumps(old_model) == before


def test_a_fitted_classifier_survives_clone_search_and_pickle(old_model):
    X, y = three_digits()
    model = clone(on(old_model, "feature_extraction"))
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
    model = on(old_model, "feature_extraction", image_size=24).fit(*three_digits())
    assert model.backbone_.data_config["input_size"] == [3, 24, 24]
    assert old_model.backbone_.data_config["input_size"] == [3, 16, 16]


def test_a_fitted_backbone_takes_no_weights(old_model):
    with pytest.raises(BackboneError, match="'weights' parameter is for named backbones"):
        on(old_model, "feature_extraction", weights=None).fit(*three_digits())


# Labels of the old task -----------------------------------------------------------------------------------------------


def test_old_labels_may_be_column_numbers(old_model, old_task):
    model = on(old_model, "feature_extraction").fit(*three_digits())
    X, y = old_task
    columns = np.searchsorted(old_model.classes_, y)
    assert model.score_original(X, columns) == model.score_original(X, y)
    weight = (model.predict_original(X) == y).astype(float)
    assert model.score_original(X, y, sample_weight=weight) == 1.0


def test_unknown_old_labels_are_named(old_model, old_task):
    model = on(old_model, "feature_extraction").fit(*three_digits())
    with pytest.raises(ValueError, match=r"y holds labels that are none of the old task's 3 classes: \['digit 9'\]"):
        model.score_original(old_task[0][:1], ["digit 9"])


# Learning without forgetting ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_heads(network):
    backbone = load_backbone(network, image_size=32)
    strategy = LearningWithoutForgetting(distillation_weight=0.5, temperature=3.0)
    return backbone, build_network(backbone, 3, strategy, seed=0), strategy


def test_lwf_trains_the_old_head_along(two_heads):
    backbone, network, strategy = two_heads
    assert torch.equal(network.original_head.weight, backbone.original_head.module.weight)
    assert network.original_head.weight is not backbone.original_head.module.weight
    groups = strategy.param_groups(network, lr=1.0)
    rates = {name: group["lr"] for group in groups for name, _ in group["params"]}
    assert rates["original_head.weight"] == rates["backbone.layer4.0.conv1.weight"] == 0.3
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_lwf_penalty_is_the_papers_distillation(two_heads):
    _, network, strategy = two_heads
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(6, 96)).astype(np.float32)
    strategy.on_train_begin(network, Start(embeddings))
    rows, weight = torch.tensor([4, 0, 2]), torch.tensor([1.0, 2.0, 0.5])
    present = torch.from_numpy(rng.normal(size=(3, 96)).astype(np.float32))
    penalty = strategy.penalty(network, Batch(None, rows, weight, present), torch.zeros(3, 3))
    with torch.no_grad():
        recorded = network.original_head(torch.from_numpy(embeddings)[rows]).double().numpy()
        scores = network.original_head(present).double().numpy()
    old = np.exp(recorded) ** (1 / 3) / (np.exp(recorded) ** (1 / 3)).sum(axis=1, keepdims=True)
    new = np.exp(scores) ** (1 / 3) / (np.exp(scores) ** (1 / 3)).sum(axis=1, keepdims=True)
    expected = 0.5 * np.mean(weight.numpy() * -(old * np.log(new)).sum(axis=1))
    assert penalty.item() == pytest.approx(expected, rel=1e-5)


def test_distillation_pulls_nowhere_at_the_recorded_scores():
    recorded = torch.tensor([[2.0, -1.0, 0.5]])
    scores = recorded.clone().requires_grad_(True)
    distillation_loss(scores, recorded, 2.0).sum().backward()
    torch.testing.assert_close(scores.grad, torch.zeros_like(scores), atol=1e-7, rtol=0)


def test_lwf_without_an_old_head_is_an_error():
    with pytest.raises(StrategyError, match="LearningWithoutForgetting needs the classifier of the old task"):
        make_model("lwf").fit(*three_digits())


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_lwf_mixes_no_images(old_model, mixing):
    with pytest.raises(StrategyError, match="records what the old head says of each image"):
        on(old_model, "lwf", **{mixing: 0.2}).fit(*three_digits())


def test_lwf_goes_on_from_its_own_old_head(old_model):
    model = on(old_model, "lwf", warm_start=True).fit(*three_digits())
    before = model._original.module.weight.clone()
    model.fit(*three_digits())
    after = model._original.module.weight
    assert 0 < (after - before).abs().max() < (after - old_model.net_.module_.head.weight).abs().max()


def test_lwf_answers_with_the_trained_old_head(old_model):
    model = on(old_model, "lwf", max_epochs=2).fit(*three_digits())
    old, new = old_model.net_.module_.head.weight, model._original.module.weight
    assert old.shape == new.shape
    assert not torch.equal(old, new)
    assert vars(model.strategy_).keys() == model.strategy_.get_params().keys()
    restored = pickle.loads(pickle.dumps(model))
    assert torch.equal(restored._original.module.weight, new)


def test_lwf_holds_the_old_answers_on_the_new_images(old_model):
    X, y = three_digits()
    recorded = old_model.predict_proba(X)

    def distance(weight):
        strategy = LearningWithoutForgetting(distillation_weight=weight, backbone_lr_scale=1.0)
        model = on(old_model, strategy, max_epochs=10, learning_rate=0.01).fit(X, y)
        assert model.score(X, y) > 0.8
        return np.abs(model.predict_proba_original(X) - recorded).mean()

    free, held = distance(0.0), distance(5.0)
    assert held < 0.5 * free


@pytest.mark.slow
def test_forgetting_is_ordered_as_li_and_hoiem_found():
    """The digits 0 to 4, then 5 to 9: fine-tuning forgets, learning without forgetting and joint training hardly."""
    X, y = load_digits(return_X_y=True)
    old, test = y < 5, np.arange(len(y)) >= 400
    settings = {"image_shape": (8, 8), "image_size": 32, "max_epochs": 6, "learning_rate": 3e-3, "random_state": 0}
    X_old, y_old = X[old & ~test], y[old & ~test]
    first = FineTuneClassifier("sktl/tiny", "fine_tuning", **settings).fit(X_old, y_old)
    scores = {}
    for strategy in (
        FineTuning(backbone_lr_scale=1.0),
        LearningWithoutForgetting(backbone_lr_scale=1.0),
        JointTraining(X_old, y_old, backbone_lr_scale=1.0),
    ):
        model = FineTuneClassifier(first, strategy, **settings).fit(X[~old & ~test], y[~old & ~test])
        assert model.score(X[~old & test], y[~old & test]) > 0.9
        scores[type(strategy)] = model.score_original(X[old & test], y[old & test])
    assert scores[FineTuning] < scores[LearningWithoutForgetting] - 0.05
    assert scores[FineTuning] < scores[JointTraining] - 0.05


# Joint training -------------------------------------------------------------------------------------------------------


def test_joint_training_keeps_what_fine_tuning_forgets(old_model, old_task):
    few, hard = three_digits(), {"max_epochs": 20, "learning_rate": 0.01}
    tuned = on(old_model, FineTuning(backbone_lr_scale=1.0), **hard).fit(*few)
    joint = on(old_model, JointTraining(*old_task, backbone_lr_scale=1.0), **hard).fit(*few)
    assert tuned.score_original(*old_task) < 0.7
    assert joint.score_original(*old_task) > 0.9
    assert joint.score(*few) > 0.9


def test_joint_training_by_name_asks_for_data():
    with pytest.raises(StrategyError, match=r"needs the data of the old task: .*JointTraining\(X_old, y_old\)"):
        resolve_strategy("joint")


def test_joint_training_draws_as_many_old_rows_as_new(old_model, old_task):
    drawn = []

    class Watched(JointTraining):
        def on_train_begin(self, network, start):
            def draw(n):
                images, targets = start.draw_original(n)
                drawn.append((n, images, targets))
                return images, targets

            super().on_train_begin(network, Start(draw_original=draw))

    X, y = three_digits()
    on(old_model, Watched(*old_task), batch_size=16).fit(X, y)
    assert sum(n for n, _, _ in drawn) == len(y)
    for n, images, targets in drawn:
        assert images.shape == (n, 16, 16, 3)
        assert len(np.unique(images.reshape(n, -1), axis=0)) == n
        assert targets.shape == (n,)


def test_joint_training_mixes_new_images_and_draws_old_ones_for_each_half(old_model, old_task):
    seen = []

    class Watched(JointTraining):
        def penalty(self, network, batch, output):
            seen.append(batch.drawn[0].numpy().copy())
            return super().penalty(network, batch, output)

    X, y = three_digits()
    on(old_model, Watched(*old_task), batch_size=len(y), mixup=0.5, device="cpu").fit(X, y)
    half = len(seen) // 2
    assert sum(map(len, seen)) == 2 * len(np.unique(X, axis=0))
    assert half >= 1
    first, *rest = (np.sort(images.reshape(len(images), -1).sum(axis=1)) for images in seen)
    assert not any(len(each) == len(first) and (each == first).all() for each in rest)


@pytest.mark.parametrize(
    "make_strategy", [JointTraining, lambda X, y: LearningWithoutForgetting()], ids=["joint", "lwf"]
)
def test_number_of_threads_has_no_influence_on_either_task(make_strategy, old_model, old_task, torch_threads):
    fitted = []
    for n_threads in (1, 2):
        torch_threads(n_threads)
        model = on(old_model, make_strategy(*old_task), batch_size=16, max_epochs=2, device="cpu")
        fitted.append(model.fit(*three_digits()))
    assert difference(*fitted) == 0.0
    first, second = (model.predict_proba_original(old_task[0]) for model in fitted)
    np.testing.assert_array_equal(first, second)


def test_joint_training_fits_an_old_head_where_there_is_none(old_task):
    model = make_model(JointTraining(*old_task), max_epochs=3).fit(*three_digits())
    np.testing.assert_array_equal(model.original_classes_, np.unique(old_task[1]))
    assert model.score_original(*old_task) > 0.6


def test_joint_training_names_labels_that_the_old_head_does_not_know(old_model, old_task):
    with pytest.raises(ValueError, match=r"The y of JointTraining holds labels .* 3 classes: \['cat'\]"):
        on(old_model, JointTraining(old_task[0][:2], ["cat", "cat"])).fit(*three_digits())


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_joint_training_names_labels_that_are_missing(old_task, missing):
    X, y = old_task
    with pytest.raises(ValueError, match=r"JointTraining's y\[2\] is missing"):
        make_model(JointTraining(X, [*y[:2], missing, *y[3:]])).fit(*three_digits())


def test_joint_training_says_whose_rows_are_meant(old_task):
    X, y = old_task
    images = [image.reshape(8, 8).astype(np.uint8) for image in X]
    strategy = JointTraining([*images[:3], b"no image", *images[4:]], y)
    with pytest.raises(InputError, match="row 3: ") as caught:
        make_model(strategy, image_shape=None).fit(images, y)
    assert caught.value.__notes__ == ["X and y are those of JointTraining here: the rows of the old task."]


def test_joint_training_shares_its_data_with_its_copies(old_task):
    strategy = JointTraining(*old_task)
    assert resolve_strategy(strategy).X is strategy.X
    assert clone(make_model(strategy)).strategy.X is strategy.X


def test_joint_training_is_repeatable_and_private(old_model, old_task):
    before = torch.get_rng_state()
    first, second = (on(old_model, JointTraining(*old_task)).fit(*three_digits()) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first.predict_proba_original(old_task[0]), second.predict_proba_original(old_task[0]))
