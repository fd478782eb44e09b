"""How training fails in good order, and what of skorch can be reached."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from skorch.callbacks import Callback, EpochScoring, GradientNormClipping
from small_models import difference, make_model, three_digits
from torch import nn

from sktl import FineTuneClassifier
from sktl.exceptions import BackboneError, StrategyError
from sktl.strategies import FeatureExtraction, FineTuning
from sktl.training.callbacks import warmup_cosine


@pytest.fixture
def few():
    return three_digits()


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_diverging_loss_is_an_error_that_says_what_to_do(few):
    model = make_model(learning_rate=1e30, max_epochs=3, batch_size=8)
    with pytest.raises(FloatingPointError, match="smaller learning_rate"):
        model.fit(*few)
    with pytest.raises(NotFittedError):
        model.predict(few[0])


class Interrupt(Callback):
    """What Ctrl-C in the middle of training does."""

    def on_batch_end(self, net, **kwargs):
        raise KeyboardInterrupt


def test_interrupted_fit_leaves_the_estimator_unfitted(few):
    model = make_model(callbacks=[Interrupt()])
    parameters = model.get_params()
    with pytest.raises(KeyboardInterrupt):
        model.fit(*few)
    with pytest.raises(NotFittedError):
        model.predict(few[0])
    assert model.get_params() == parameters
    model.set_params(callbacks=None).fit(*few).predict(few[0])


def test_interrupted_refit_leaves_the_first_fit(few):
    model = make_model().fit(*few)
    expected = model.predict_proba(few[0])
    with pytest.raises(KeyboardInterrupt):
        model.set_params(callbacks=[Interrupt()]).fit(few[0][:20], few[1][:20] > 0)
    np.testing.assert_array_equal(model.predict_proba(few[0]), expected)


def test_one_class_is_refused(few):
    with pytest.raises(ValueError, match="at least 2 classes in y, got 1 class"):
        make_model().fit(few[0][:5], ["cat"] * 5)


@pytest.mark.parametrize(("name", "match"), [("fine_tunning", "'fine_tuning'"), ("lpft", "'lp_ft'")])
def test_unknown_strategy_gets_a_close_match(few, name, match):
    with pytest.raises(StrategyError, match=f"Did you mean {match}"):
        make_model(name).fit(*few)


@pytest.mark.parametrize("strategy", [FineTuning(backbone_lr_scale=-1), FeatureExtraction(C=0)])
def test_invalid_parameter_of_a_strategy_is_named(few, strategy):
    with pytest.raises(ValueError, match=f"parameter of {type(strategy).__name__} must be a float"):
        make_model(strategy).fit(*few)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("max_epochs", 0), ("learning_rate", -1.0), ("validation_fraction", 1.0), ("early_stopping", "yes"), ("dtype", 8)],
)
def test_invalid_parameter_is_named(few, parameter, value):
    with pytest.raises(ValueError, match=f"'{parameter}' parameter of FineTuneClassifier must be"):
        make_model(**{parameter: value}).fit(*few)


def test_rows_and_labels_must_agree_in_number(image_paths):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        FineTuneClassifier(image_size=32).fit(image_paths[0], image_paths[1][:-1])


def test_own_network_that_cannot_start_from_scratch_is_named(few):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3))

        def forward(self, images):
            return images.mean((2, 3)) * self.factor

    with pytest.raises(BackboneError, match="reset_parameters"):
        make_model("from_scratch").set_params(backbone=Scale()).fit(*few)


# skorch ---------------------------------------------------------------------------------------------------------------


class Epochs(Callback):
    """Counts epochs."""

    def __init__(self):
        self.n = 0

    def on_epoch_end(self, net, **kwargs):
        self.n += 1


def test_callbacks_are_run(few):
    counter = Epochs()
    make_model(callbacks=[("mine", counter), Epochs()], max_epochs=2).fit(*few)
    assert counter.n == 2


def test_parameters_of_the_net_are_handed_on(few):
    params = {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9}
    model = make_model(net_params=params, max_epochs=3).fit(*few)
    assert isinstance(model.net_.optimizer, type)
    assert model.net_.optimizer is torch.optim.SGD
    assert len(model.history_) == 3


@pytest.mark.parametrize("name", ["foreach", "fused", "amsgrad"])
def test_the_optimizer_may_be_told_how_to_go_about_it(few, name):
    model = make_model(net_params={f"optimizer__{name}": True}).fit(*few)
    assert {group[name] for group in model.net_.optimizer_.param_groups} == {True}


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("callbacks", [], "callbacks"),
        ("optimizer__lr", 0.1, "learning_rate"),
        ("optimizer__weight_decay", 0.5, "weight_decay"),
        ("optimizer__param_groups", [("head*", {"lr": 0.1})], "strategy"),
        ("criterion__label_smoothing", 0.1, "label_smoothing"),
        ("iterator_train__batch_size", 7, "batch_size"),
        ("warm_start", True, "warm_start"),
    ],
)
def test_parameters_of_the_net_that_the_estimator_has_are_refused(few, name, value, instead):
    with pytest.raises(ValueError, match=f"'net_params' parameter must not hold '{name}': .* {instead}= instead"):
        make_model(net_params={name: value}).fit(*few)


@pytest.mark.parametrize(
    ("name", "value"),
    [("criterion__reduction", "mean"), ("iterator_train__num_workers", 1), ("module__bias", False), ("dataset", list)],
)
def test_parameters_of_the_net_that_training_relies_on_are_refused(few, name, value):
    with pytest.raises(ValueError, match=f"'net_params' parameter must not hold '{name}': .* no parameter sets it"):
        make_model(net_params={name: value}).fit(*few)


def test_parameters_that_no_net_has_are_named(few):
    with pytest.raises(ValueError, match="'net_params' parameter holds 'optimiser', which no net"):
        make_model(net_params={"optimiser": torch.optim.SGD}).fit(*few)
    make_model(net_params={"optimizer": torch.optim.SGD, "optimizer__momentum": 0.5}).fit(*few)


class WithoutReduction(nn.Module):
    def __init__(self):
        super().__init__()

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)


class WithoutRows(WithoutReduction):
    def __init__(self, reduction):
        super().__init__()


@pytest.mark.parametrize(
    ("criterion", "options", "message"),
    [
        (nn.CrossEntropyLoss(ignore_index=0), {}, "must hold a class as 'criterion'.*'criterion__<parameter>'"),
        (WithoutReduction, {}, "WithoutReduction as 'criterion', which takes no 'reduction'"),
        (
            nn.NLLLoss,
            {"label_smoothing": 0.1},
            "NLLLoss as 'criterion', which takes no 'label_smoothing'",
        ),
        (WithoutRows, {}, "one number for all rows; with reduction='none'"),
    ],
)
def test_losses_that_training_cannot_work_with_are_refused(few, criterion, options, message):
    with pytest.raises(ValueError, match=message):
        make_model(net_params={"criterion": criterion}, **options).fit(*few)


def test_class_weights_of_labels_in_columns_need_the_loss_that_knows_them(few):
    labels = np.eye(3, dtype=int)[few[1]]
    with pytest.raises(ValueError, match=r"takes no 'label_weight'.*Leave class_weight="):
        make_model(net_params={"criterion": nn.BCEWithLogitsLoss}, class_weight="balanced").fit(few[0], labels)


def test_a_loss_of_ones_own_has_its_parameters(few):
    plain, weighed = (
        make_model(net_params={"criterion": nn.CrossEntropyLoss, **params}).fit(*few)
        for params in ({}, {"criterion__weight": torch.tensor([1.0, 5.0, 1.0])})
    )
    assert difference(plain, weighed) > 0


@pytest.mark.parametrize("callback", [EpochScoring("accuracy"), ("score", EpochScoring("accuracy")), EpochScoring])
def test_scoring_by_skorch_is_refused_in_favour_of_scikit_learns(few, callback):
    with pytest.raises(ValueError, match=r"EpochScoring.*sklearn.callback.ScoringMonitor"):
        make_model(callbacks=[callback]).fit(*few)


@pytest.mark.parametrize("callbacks", [["progress"], [("clip",)], [object()]])
def test_callbacks_that_are_none_are_named(few, callbacks):
    with pytest.raises(ValueError, match="'callbacks' parameter must hold callbacks of skorch"):
        make_model(callbacks=callbacks).fit(*few)
    make_model(callbacks=[("limit", GradientNormClipping(gradient_clip_value=1.0)), GradientNormClipping]).fit(*few)


def test_history_is_plain_and_tells_the_phases(few):
    history = make_model("lp_ft", max_epochs=3).fit(*few).history_
    assert [entry["phase"] for entry in history] == ["head"] + ["network"] * 3
    assert [entry["epoch"] for entry in history[1:]] == [1, 2, 3]
    for entry in history:
        assert entry["train_loss"] > 0
        assert entry["dur"] > 0
        assert all(type(value) in (int, float, str, bool) for value in entry.values()), entry
    assert [entry["phase"] for entry in make_model("feature_extraction").fit(*few).history_] == ["head"]


@pytest.mark.parametrize("strategy", ["fine_tuning", "gradual_unfreezing", "from_scratch"])
def test_history_holds_the_learning_rate_of_the_head(few, strategy):
    model = make_model(strategy, max_epochs=4, learning_rate=0.01, batch_size=len(few[1])).fit(*few)
    rates = [entry["lr"] for entry in model.history_ if entry["phase"] == "network"]
    assert rates == pytest.approx([0.01 * warmup_cosine(4)(step) for step in range(4)])
    passed = make_model(strategy, learning_rate=0.01).partial_fit(*few, classes=[0, 1, 2])
    assert passed.history_[-1]["lr"] == 0.01


def test_verbose_prints_a_line_per_epoch(few, capsys):
    make_model(max_epochs=2).fit(*few)
    assert capsys.readouterr().out == ""
    make_model(max_epochs=2, verbose=1).fit(*few)
    out = capsys.readouterr().out
    assert "train_loss" in out
    assert "frozen_prefix" not in out, "it is the same in each epoch, or empty"
    assert "precision" not in out
    assert "Re-initializing" not in out


def test_nothing_is_printed_where_another_package_replaced_print(few, capsys, monkeypatch):
    plain = print
    monkeypatch.setattr("builtins.print", lambda *values, **options: plain(*values, **options))
    make_model(max_epochs=1).fit(*few)
    assert capsys.readouterr().out == ""


def test_weights_that_are_no_numbers_are_no_fit(few):
    model = make_model(learning_rate=1e30, max_epochs=1, batch_size=1000)
    with pytest.raises(FloatingPointError, match="Try a smaller learning_rate"):
        model.fit(*few)
    assert not hasattr(model, "net_")


def test_copies_are_not_split_between_training_and_validation(few):
    X, y = few
    doubled = np.concatenate([X, X]), np.concatenate([y, y])
    model = make_model(early_stopping=True, validation_fraction=0.4, max_epochs=1).fit(*doubled)
    held_out = set(model.validation_indices_ % len(X))
    assert held_out
    assert len(model.validation_indices_) == 2 * len(held_out)


def test_validation_data_needs_labels(few):
    with pytest.raises(ValueError, match="X_val and y_val must be given together"):
        make_model().fit(*few, X_val=few[0])
