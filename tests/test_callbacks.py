"""Callbacks: those of scikit-learn, set on an estimator or on what wraps it, and those of skorch."""

import copy
import io
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, LRScheduler
from skorch.callbacks import ProgressBar as NetProgressBar
from skorch.exceptions import SkorchException
from small_models import changed, difference, make_model, three_digits

from sktl import PretrainedFeatureTransformer

STEPS = {
    "feature_extraction": ["head"],
    "fine_tuning": ["epoch", "epoch"],
    "lp_ft": ["head", "epoch", "epoch"],
    "lora": ["head", "epoch", "epoch"],
    "wise_ft": ["head", "epoch", "epoch"],
}


class Recorder:
    """A callback of scikit-learn that writes down what it is told, and says stop after a number of steps."""

    max_propagation_depth = None

    def __init__(self, stop_after=None):
        self.calls, self.given, self.proba, self.stop_after = [], {}, [], stop_after

    def setup(self, estimator, context):
        self.calls.append("setup")

    def teardown(self, estimator, context):
        self.calls.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None, metadata=None):
        self.calls.append(f"begin {context.task_name}")
        self.given = {"X": X, "y": y, "metadata": metadata}

    def on_fit_task_end(self, estimator, context, *, X=None, fitted_estimator=None):
        self.calls.append(f"end {context.task_name}")
        if hasattr(fitted_estimator, "predict_proba"):
            check_is_fitted(fitted_estimator)
            self.proba.append(fitted_estimator.predict_proba(X))
        return self.stop_after is not None and len(self.proba) >= self.stop_after


@pytest.fixture
def few():
    return three_digits()


# scikit-learn ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STEPS)
def test_the_steps_of_a_fit_are_tasks(few, strategy):
    recorder = Recorder()
    make_model(strategy, max_epochs=2).set_callbacks(recorder).fit(*few)
    steps = [f"{edge} {name}" for name in STEPS[strategy] for edge in ("begin", "end")]
    assert recorder.calls == ["setup", "begin fit", *steps, "end fit", "teardown"]


def test_a_task_is_told_the_data_of_the_fit(few):
    weight = np.ones(len(few[1]))
    recorder = Recorder()
    make_model().set_callbacks(recorder).fit(*few, sample_weight=weight)
    assert recorder.given["X"] is few[0]
    assert recorder.given["y"] is few[1]
    assert recorder.given["metadata"]["sample_weight"] is weight


@pytest.mark.parametrize("strategy", STEPS)
def test_the_estimator_of_a_step_is_the_one_that_stops_there(few, strategy):
    """The last step gives the fitted estimator; and an observer that predicts changes nothing."""
    recorder = Recorder()
    model = make_model(strategy, max_epochs=2).set_callbacks(recorder).fit(*few)
    np.testing.assert_array_equal(recorder.proba[-1], model.predict_proba(few[0]))
    np.testing.assert_array_equal(recorder.proba[-2], model.predict_proba(few[0]))  # the last step's
    assert difference(model, make_model(strategy, max_epochs=2).fit(*few)) == 0.0
    if strategy != "feature_extraction":
        assert not np.array_equal(recorder.proba[0], recorder.proba[1])


def test_a_callback_may_stop_training(few):
    model = make_model(max_epochs=5).set_callbacks(Recorder(stop_after=2)).fit(*few)
    assert len(model.history_) == 2
    assert model.predict(few[0]).shape == few[1].shape


@pytest.mark.parametrize("strategy", ["lp_ft", "wise_ft", "lora"])
def test_a_callback_may_stop_after_the_head(few, strategy):
    recorder = Recorder(stop_after=1)
    model = make_model(strategy, max_epochs=5).set_callbacks(recorder).fit(*few)
    assert [entry["phase"] for entry in model.history_] == ["head"]
    np.testing.assert_array_equal(model.predict_proba(few[0]), recorder.proba[0])
    assert changed(model) == set()


def test_the_epoch_that_a_callback_stops_at_counts_for_early_stopping(few):
    X, y = few
    recorder = Recorder(stop_after=4)
    model = make_model(max_epochs=8, batch_size=9, learning_rate=0.02, early_stopping=True).set_callbacks(recorder)
    model.fit(X, y, X_val=X, y_val=y)
    losses = [epoch["valid_loss"] for epoch in model.history_]
    assert len(losses) == 4
    assert losses[-1] == min(losses)
    np.testing.assert_array_equal(model.predict_proba(X), recorder.proba[3])


def test_callbacks_are_torn_down_when_a_fit_fails(few):
    recorder = Recorder()
    model = make_model(learning_rate=1e30, max_epochs=3).set_callbacks(recorder)
    with pytest.raises(FloatingPointError):
        model.fit(*few)
    assert recorder.calls[-1] == "teardown"
    assert {name for name in vars(model) if name.startswith("_")} == {"_skl_callbacks"}
    with pytest.raises(NotFittedError):
        model.predict(few[0])


def test_a_fitted_model_keeps_no_data(few):
    model = make_model().set_callbacks(Recorder()).fit(few[0].copy(), few[1])
    for _, callback in model.net_.callbacks_:
        assert not any(isinstance(value, np.ndarray) for value in vars(callback).values())


def test_scores_are_monitored_in_a_search(few):
    monitor = ScoringMonitor(scoring="accuracy")
    search = GridSearchCV(make_model("lp_ft"), {"strategy__C": [0.1, 1.0]}, cv=2, error_score="raise")
    search.estimator.set_callbacks(monitor)
    search.fit(*few)
    rows = monitor.get_logs().data
    steps = [row for row in rows if row["task_name"] in ("head", "epoch")]
    assert len(steps) == 2 * (2 * 2 + 1)  # head and epoch of each candidate in each fold, and of the best
    assert all(0 <= row["accuracy"] <= 1 for row in steps)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_progress_of_a_search_reaches_its_estimators(few, n_jobs):
    search = GridSearchCV(make_model("lp_ft"), {"strategy__C": [0.1, 1.0]}, cv=2, error_score="raise", n_jobs=n_jobs)
    with redirect_stdout(io.StringIO()) as shown:
        search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(*few)
    assert shown.getvalue().count("FineTuneClassifier") >= 5
    assert not hasattr(search.best_estimator_, "_skl_callbacks")


def test_a_pipeline_hands_its_callbacks_to_all_steps(few):
    recorder = Recorder()
    embed = PretrainedFeatureTransformer(image_shape=(8, 8), image_size=16)
    make_pipeline(embed, LogisticRegression(max_iter=5, tol=1.0)).set_callbacks(recorder).fit(*few)
    assert recorder.calls[0] == "setup"
    assert recorder.calls.count("setup") == recorder.calls.count("teardown") == 1
    assert recorder.calls.count("begin fit") == recorder.calls.count("end fit") == 3  # the pipeline and its two steps


# skorch ---------------------------------------------------------------------------------------------------------------


def test_early_stopping_of_skorch_ends_training_in_good_order(few):
    """It raises KeyboardInterrupt, and a fit that a user interrupts must fail."""
    X, y = few
    recorder = Recorder()
    stop = EarlyStopping(monitor="valid_loss", patience=2, load_best=True, sink=lambda text: None)
    model = make_model(callbacks=[stop], max_epochs=30, learning_rate=0.1, early_stopping=False)
    model.set_callbacks(recorder).fit(X[:30], y[:30], X_val=X[30:], y_val=(y[30:] + 1) % 3)
    losses = [epoch["valid_loss"] for epoch in model.history_]
    assert len(losses) < 30
    assert recorder.calls.count("begin epoch") == recorder.calls.count("end epoch") == len(losses)
    proba = model.predict_proba(X[30:])
    assert -np.log(proba[np.arange(15), (y[30:] + 1) % 3]).mean() == pytest.approx(min(losses), rel=1e-3)


@pytest.mark.parametrize("name", [None, "mine"])
def test_a_schedule_of_skorch_takes_the_place_of_the_own_one(few, name):
    schedule = LRScheduler("StepLR", step_size=1, gamma=0.1)
    callbacks = [schedule if name is None else (name, schedule)]
    model = make_model(callbacks=callbacks, max_epochs=3, learning_rate=0.01, batch_size=9).fit(*few)
    assert [epoch["lr"] for epoch in model.history_] == pytest.approx([0.01, 0.001, 0.0001])


def test_no_schedule_leaves_the_rate_as_it_is(few):
    model = make_model(net_params={"callbacks__schedule": None}, max_epochs=3, learning_rate=0.01).fit(*few)
    assert [epoch["lr"] for epoch in model.history_] == [0.01] * 3


class AtTheEnd(Callback):
    """Keeps the network's weights as they are when training ends, and what it says about some images."""

    def on_train_end(self, net, **kwargs):
        self.weights = copy.deepcopy(net.module_.state_dict())
        self.outputs = net.infer(torch.zeros(2, 16, 16, 3, dtype=torch.uint8)).detach()


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("fine_tuning", {"ema_decay": 0.9}),
        ("fine_tuning", {"early_stopping": True, "n_iter_no_change": 1}),
        ("partial", {"ema_decay": 0.9, "early_stopping": True}),
    ],
)
def test_what_training_gives_is_there_when_its_end_is_told(few, strategy, options):
    X, y = few
    end = AtTheEnd()
    model = make_model(strategy, callbacks=[end], max_epochs=4, learning_rate=0.1, **options)
    model.fit(X[:30], y[:30], X_val=X[30:], y_val=(y[30:] + 1) % 3)
    result = model.net_.module_.state_dict()
    assert all(torch.equal(end.weights[name], value) for name, value in result.items())
    assert end.outputs.shape == (2, 3)


def test_going_back_to_weights_that_are_not_averaged_is_refused(few):
    stop = EarlyStopping(monitor="train_loss", load_best=True)
    for each in (stop, ("mine", stop)):
        with pytest.raises(ValueError, match=r"load_best=True.* ema_decay .*early_stopping=True instead"):
            make_model(callbacks=[each], ema_decay=0.9).fit(*few)
    make_model(callbacks=[EarlyStopping(monitor="train_loss")], ema_decay=0.9).fit(*few)


@pytest.mark.parametrize("callback", [EarlyStopping(), Checkpoint(f_params=None, f_optimizer=None, f_history=None)])
def test_callback_that_looks_for_held_out_rows_is_told_how_to_have_them(few, callback):
    with pytest.raises((KeyError, SkorchException), match="valid_loss") as caught:
        make_model(callbacks=[callback]).fit(*few)
    assert caught.value.__notes__ == [
        "No rows are held out here: give fit X_val= and y_val=, or set early_stopping=True."
    ]


def test_progress_of_skorch_in_a_search(few, capsys):
    model = make_model(callbacks=[NetProgressBar(detect_notebook=False)], max_epochs=2)
    GridSearchCV(model, {"batch_size": [8]}, cv=2, error_score="raise").fit(*few)
    assert capsys.readouterr().err.count("0/6") == 2  # the two epochs of the refit


def test_both_kinds_at_once_change_no_weight(few):
    plain = make_model(max_epochs=2).fit(*few)
    watched = make_model(max_epochs=2, callbacks=[EarlyStopping(monitor="train_loss", patience=5)])
    watched.set_callbacks(ScoringMonitor(scoring="accuracy"), Recorder()).fit(*few)
    assert difference(plain, watched) == 0.0
    assert torch.is_grad_enabled()
