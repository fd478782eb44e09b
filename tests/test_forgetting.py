"""The ways that keep the old task: learning without forgetting, and joint training."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from small_models import difference, go_on_from, make_model, three_digits

from sktl import FineTuneClassifier
from sktl.backbones import load_backbone
from sktl.exceptions import InputError, StrategyError
from sktl.strategies import (
    Batch,
    FineTuning,
    JointTraining,
    LearningWithoutForgetting,
    Start,
    resolve_strategy,
)
from sktl.strategies._remembering import distillation_loss
from sktl.training import build_network, zero_linear

# Learning without forgetting ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_heads(network):
    backbone = load_backbone(network, image_size=32)
    strategy = LearningWithoutForgetting(distillation_weight=0.5, temperature=3.0)
    return backbone, build_network(backbone, zero_linear(backbone.width, 3), strategy, seed=0), strategy


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
        go_on_from(old_model, "lwf", **{mixing: 0.2}).fit(*three_digits())


def test_lwf_goes_on_from_its_own_old_head(old_model):
    model = go_on_from(old_model, "lwf", warm_start=True).fit(*three_digits())
    before = model._original.module.weight.clone()
    model.fit(*three_digits())
    after = model._original.module.weight
    assert 0 < (after - before).abs().max() < (after - old_model.net_.module_.head.weight).abs().max()


def test_lwf_answers_with_the_trained_old_head(old_model):
    model = go_on_from(old_model, "lwf", max_epochs=2).fit(*three_digits())
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
        model = go_on_from(old_model, strategy, max_epochs=10, learning_rate=0.01).fit(X, y)
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
    tuned = go_on_from(old_model, FineTuning(backbone_lr_scale=1.0), **hard).fit(*few)
    joint = go_on_from(old_model, JointTraining(*old_task, backbone_lr_scale=1.0), **hard).fit(*few)
    assert tuned.score_original(*old_task) < 0.7
    assert joint.score_original(*old_task) > 0.9
    assert joint.score(*few) > 0.9


def test_joint_training_by_name_asks_for_data():
    with pytest.raises(StrategyError, match=r"needs the data of the old task, .*JointTraining\(X=\.\.\., y=\.\.\.\)"):
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
    go_on_from(old_model, Watched(*old_task), batch_size=16).fit(X, y)
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
    go_on_from(old_model, Watched(*old_task), batch_size=len(y), mixup=0.5, device="cpu").fit(X, y)
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
        model = go_on_from(old_model, make_strategy(*old_task), batch_size=16, max_epochs=2, device="cpu")
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
        go_on_from(old_model, JointTraining(old_task[0][:2], ["cat", "cat"])).fit(*three_digits())


def test_joint_training_takes_no_numbers_for_labels(old_task):
    X, y = old_task
    with pytest.raises(ValueError, match=r"The y of JointTraining must hold labels of classes, .* it holds continuous"):
        make_model(JointTraining(X, np.linspace(0.1, 0.9, len(y)))).fit(*three_digits())


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_joint_training_names_labels_that_are_missing(old_task, missing):
    X, y = old_task
    with pytest.raises(ValueError, match=r"JointTraining's y\[2\] is missing"):
        make_model(JointTraining(X, [*y[:2], missing, *y[3:]])).fit(*three_digits())


def test_joint_training_says_whose_rows_are_meant(old_task):
    X, y = old_task
    images = [image.reshape(8, 8).astype(np.uint8) for image in X]
    strategy = JointTraining([*images[:3], b"no image", *images[4:]], y)
    with pytest.raises(InputError, match=r"^In JointTraining's X and y: 1 of 60 rows of X cannot be used:\n  row 3: "):
        make_model(strategy, image_shape=None).fit(images, y)


def test_joint_training_shares_its_data_with_its_copies(old_task):
    strategy = JointTraining(*old_task)
    assert resolve_strategy(strategy).X is strategy.X
    assert clone(make_model(strategy)).strategy.X is strategy.X


def test_the_old_data_can_be_left_behind(old_model, old_task):
    model = go_on_from(old_model, JointTraining(*old_task)).fit(*three_digits())
    old_row = np.ascontiguousarray(old_task[0][3]).tobytes()
    expected = model.predict_proba_original(old_task[0])
    assert old_row in pickle.dumps(model)
    model.set_params(strategy="fine_tuning")
    assert old_row not in pickle.dumps(model)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba_original(old_task[0]), expected)


def test_joint_training_is_repeatable_and_private(old_model, old_task):
    before = torch.get_rng_state()
    first, second = (go_on_from(old_model, JointTraining(*old_task)).fit(*three_digits()) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first.predict_proba_original(old_task[0]), second.predict_proba_original(old_task[0]))
