"""Fits that are cut off: killed, interrupted; what goes on, what is refused, what is left behind."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_fit import make_killable
from PIL import Image
from sklearn.datasets import load_digits
from skorch.callbacks import Callback, LRScheduler
from small_models import Net, difference, make_model, three_digits, weights_of
from torch import nn

from sktl.exceptions import CheckpointError
from sktl.strategies import FineTuning, JointTraining
from sktl.training import checkpoint as checkpoints

HERE = Path(__file__).parent
FILE = "training.ckpt"


class Interrupt(Callback):
    """What Ctrl-C does in some training step, counted from 1."""

    def __init__(self, step):
        self.step = step

    def on_batch_begin(self, net, training=False, **kwargs):
        self.step -= training
        if training and self.step == 0:
            raise KeyboardInterrupt


class Counter(Callback):
    """Counts epochs, and has a state."""

    n = 0

    def on_epoch_end(self, net, **kwargs):
        self.n += 1

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


def interrupted(model, step):
    with pytest.raises(KeyboardInterrupt):
        model.set_params(callbacks=[Interrupt(step)]).fit(*three_digits())
    return model.set_params(callbacks=None)


# Going on -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked and killed")
def test_killed_fit_goes_on_to_the_very_weights_of_an_unbroken_one(tmp_path):
    strategy, folder, output = "lp_ft", tmp_path / "folder", tmp_path / "weights.npz"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
    steps = ["2", "7", "1", "9", "0"]  # in the first epoch, the second, the second again, the third after that, none
    command = [sys.executable, str(HERE / "killed_fit.py"), str(folder), strategy, str(output), *steps]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.stdout == "[-9, -9, -9, -9, 0]\n", finished.stderr
    unbroken = weights_of(make_killable(None, strategy).fit(*three_digits()))
    with np.load(output) as found:
        assert found.keys() == unbroken.keys()
        for name, value in unbroken.items():
            np.testing.assert_array_equal(found[name], value.numpy(), err_msg=name)
    assert os.listdir(folder) == []


@pytest.mark.parametrize(("strategy", "step"), [("fine_tuning", 1), ("partial", 5), ("from_scratch", 8), ("lp_ft", 12)])
def test_interrupted_fit_goes_on_wherever_it_was(tmp_path, strategy, step):
    options = {"max_epochs": 3, "early_stopping": False}
    unbroken = make_killable(None, strategy, **options).fit(*three_digits())
    model = interrupted(make_killable(tmp_path, strategy, **options), step)
    assert not hasattr(model, "net_")
    assert (tmp_path / FILE).exists() == (step > 5)
    model.fit(*three_digits())
    assert difference(model, unbroken) == 0.0
    assert [entry["epoch"] for entry in model.history_ if entry["phase"] == "network"] == [1, 2, 3]
    for entry, other in zip(model.history_, unbroken.history_, strict=True):
        entry, other = ({key: value for key, value in each.items() if key != "dur"} for each in (entry, other))
        assert entry == other


def test_a_schedule_of_skorch_goes_on_where_it_was(tmp_path):
    def schedule():
        return LRScheduler("StepLR", step_size=1, gamma=0.1)

    unbroken = make_killable(None, "fine_tuning", callbacks=[schedule()]).fit(*three_digits())
    model = make_killable(tmp_path, "fine_tuning", callbacks=[schedule(), Interrupt(8)])
    with pytest.raises(KeyboardInterrupt):
        model.fit(*three_digits())
    model.set_params(callbacks=[schedule()]).fit(*three_digits())
    assert [epoch["lr"] for epoch in model.history_] == [epoch["lr"] for epoch in unbroken.history_]
    assert difference(model, unbroken) == 0.0


def test_the_name_of_a_strategy_and_its_object_are_the_same_fit(tmp_path):
    model = interrupted(make_killable(tmp_path, "fine_tuning"), 6)
    model.set_params(strategy=FineTuning()).fit(*three_digits())
    assert difference(model, make_killable(None, FineTuning()).fit(*three_digits())) == 0.0


def old_digits(form):
    """Handwritten zeros to threes as another process would read them: the same values in other objects."""
    X, y = load_digits(return_X_y=True)
    images = [Image.fromarray((image.reshape(8, 8) * 15).astype(np.uint8)) for image in X[-40:]]
    labels = [f"digit {label % 4}" for label in y[-40:]]
    if form == "pillow":
        return images, labels
    return np.array([np.asarray(image) for image in images]), np.array(labels, dtype=object)


@pytest.mark.parametrize("form", ["pillow", "objects"])
def test_old_task_counts_by_what_its_rows_hold(tmp_path, form):
    images, y = old_digits("pillow")[0][:30], three_digits()[1][:30]
    options = {"image_shape": None, "max_epochs": 3, "batch_size": 9}

    def make(**parameters):
        X_old, y_old = old_digits(form)
        return make_model(JointTraining(X_old, y_old, **parameters), **options)

    with pytest.raises(KeyboardInterrupt):
        make().set_params(checkpoint=tmp_path, callbacks=[Interrupt(6)]).fit(images, y)
    with pytest.raises(CheckpointError, match="strategy differs"):
        make(original_weight=0.5).set_params(checkpoint=tmp_path).fit(images, y)
    fewer = make()
    fewer.strategy.y = [*fewer.strategy.y[:-1], "digit 0" if fewer.strategy.y[-1] != "digit 0" else "digit 1"]
    with pytest.raises(CheckpointError, match="the old task's data differs"):
        fewer.set_params(checkpoint=tmp_path).fit(images, y)
    went_on = make().set_params(checkpoint=tmp_path).fit(images, y)
    assert difference(went_on, make().fit(images, y)) == 0.0


def test_rows_of_both_tasks_are_opened_once(tmp_path, monkeypatch):
    opened = []
    model = make_model(JointTraining(*three_digits()), checkpoint=tmp_path)
    open_rows = model._open_rows
    monkeypatch.setattr(model, "_open_rows", lambda X, backbone: opened.append(X) or open_rows(X, backbone))
    model.fit(*three_digits())
    assert len(opened) == 2


def test_early_stopping_remembers_its_best_weights(tmp_path):
    X, y = three_digits()
    wrong = (y[30:] + 1) % 3  # the better the training rows are learnt, the worse
    options = {"max_epochs": 8, "learning_rate": 0.1, "early_stopping": True, "n_iter_no_change": 3}
    fit = {"X_val": X[30:], "y_val": wrong}
    unbroken = make_model(**options).fit(X[:30], y[:30], **fit)
    assert len(unbroken.history_) < 8
    model = make_model(**options, checkpoint=tmp_path, callbacks=[Interrupt(len(unbroken.history_))])
    with pytest.raises(KeyboardInterrupt):
        model.fit(X[:30], y[:30], **fit)
    model.set_params(callbacks=None).fit(X[:30], y[:30], **fit)
    assert difference(model, unbroken) == 0.0
    flags, expected = ([entry["valid_loss_best"] for entry in each.history_] for each in (model, unbroken))
    assert flags == expected  # skorch's Checkpoint saves where these are true


class Fail(Callback):
    """What a full disk does after the last epoch."""

    def on_train_end(self, net, **kwargs):
        raise OSError("No space left on device")


def test_fit_that_was_cut_off_after_it_stopped_stops_there_again(tmp_path):
    X, y = three_digits()
    options = {"max_epochs": 8, "learning_rate": 0.1, "early_stopping": True, "n_iter_no_change": 3}
    fit = {"X_val": X[30:], "y_val": (y[30:] + 1) % 3}
    unbroken = make_model(**options).fit(X[:30], y[:30], **fit)
    model = make_model(**options, checkpoint=tmp_path, callbacks=[Fail()])
    with pytest.raises(OSError, match="No space left"):
        model.fit(X[:30], y[:30], **fit)
    model.set_params(callbacks=None).fit(X[:30], y[:30], **fit)
    assert [entry["epoch"] for entry in model.history_] == [entry["epoch"] for entry in unbroken.history_]
    assert difference(model, unbroken) == 0.0


def test_state_of_training_may_be_killed_while_it_is_written(tmp_path, monkeypatch):
    model = interrupted(make_killable(tmp_path, "fine_tuning"), 6)
    before = (tmp_path / FILE).read_bytes()

    def fail(handle):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        model.fit(*three_digits())
    assert os.listdir(tmp_path) == [FILE]
    assert (tmp_path / FILE).read_bytes() == before
    monkeypatch.undo()
    (tmp_path / f".{FILE}-unfinished").write_bytes(before[:100])  # what a kill leaves behind
    assert difference(model.fit(*three_digits()), make_killable(None, "fine_tuning").fit(*three_digits())) == 0.0
    assert os.listdir(tmp_path) == []


def test_interrupted_refit_leaves_the_first_fit(tmp_path):
    model = make_model(max_epochs=2).fit(*three_digits())
    expected = model.predict_proba(three_digits()[0])
    interrupted(model.set_params(checkpoint=tmp_path, learning_rate=0.1), 2)
    np.testing.assert_array_equal(model.predict_proba(three_digits()[0]), expected)


def test_strategies_without_epochs_keep_no_state(tmp_path):
    make_model("feature_extraction", checkpoint=tmp_path).fit(*three_digits())
    assert os.listdir(tmp_path) == []


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"batch_size": 10}, r"it has batch_size=9, and this one batch_size=10"),
        ({"random_state": 1}, "random_state"),
        ({"strategy": FineTuning(backbone_lr_scale=0.5)}, "strategy"),
        ({"backbone": Net()}, "the backbone differs"),
        ({"net_params": {"optimizer": torch.optim.SGD}}, "net_params"),
        ({"image_size": 20}, "the backbone differs"),
    ],
)
def test_checkpoint_of_another_fit_is_refused(tmp_path, changed, match):
    model = interrupted(make_killable(tmp_path, FineTuning()), 6)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(CheckpointError, match=f"belongs to another fit: .*{match}.*another folder"):
        model.set_params(**changed).fit(*three_digits())
    assert (tmp_path / FILE).read_bytes() == before


def shifted(pixels, rng, by):
    return np.roll(pixels, by, axis=0)


def own_head(value):
    head = nn.utils.skip_init(nn.Linear, 16, 3)
    for parameter in head.parameters():
        nn.init.constant_(parameter, value)
    return head


@pytest.mark.parametrize(
    ("name", "make"), [("head", own_head), ("augment", lambda number: partial(shifted, by=number))]
)
def test_checkpoint_of_another_fit_is_told_by_what_is_inside_a_parameter(tmp_path, name, make):
    model = interrupted(make_killable(tmp_path, "fine_tuning", **{name: make(1)}), 6)
    with pytest.raises(CheckpointError, match=f"belongs to another fit: .*{name}"):
        model.set_params(**{name: make(2)}).fit(*three_digits())
    expected = make_killable(None, "fine_tuning", **{name: make(1)}).fit(*three_digits())
    assert difference(model.set_params(**{name: make(1)}).fit(*three_digits()), expected) == 0.0


@pytest.mark.parametrize("what", ["pixels", "labels", "weights", "fewer rows"])
def test_checkpoint_of_other_data_is_refused(tmp_path, what):
    X, y = three_digits()
    model = interrupted(make_killable(tmp_path, "fine_tuning", early_stopping=False), 6)
    weight = np.ones(len(y))
    if what == "pixels":
        X = X.copy()
        X[3, 20] = 15 - X[3, 20]
    elif what == "labels":
        y = np.r_[y[1], y[0], y[2:]]
    elif what == "weights":
        weight[0] = 2
    else:
        X, y, weight = X[1:], y[1:], weight[1:]
    with pytest.raises(CheckpointError, match="the data differs"):
        model.fit(X, y, sample_weight=weight)


def test_where_and_how_it_is_computed_may_change(tmp_path):
    model = interrupted(make_killable(tmp_path, "fine_tuning"), 6)
    counter = Counter()
    model.set_params(verbose=0, cache_bytes=0, gradient_accumulation=2, memory=str(tmp_path / "memory"))
    model.set_params(callbacks=[counter]).fit(*three_digits())
    assert model.net_.parts_.n == 2
    assert counter.n == len(model.history_) - 1


def test_parts_that_memory_asked_for_are_not_fewer_after_that(tmp_path):
    model = interrupted(make_killable(tmp_path, "fine_tuning", gradient_accumulation=3), 6)
    assert model.set_params(gradient_accumulation=1).fit(*three_digits()).net_.parts_.n == 3


def test_speed_is_that_of_the_epochs_that_ran_here(tmp_path):
    options = {"early_stopping": False, "max_epochs": 4}
    model = interrupted(make_killable(tmp_path, "lp_ft", **options), 16).fit(*three_digits())
    assert len(model.history_) == 5
    assert model.images_per_second_ * model.fit_seconds_ == pytest.approx(2 * len(three_digits()[1]))  # head, epoch


def test_damaged_checkpoint_is_named(tmp_path):
    model = interrupted(make_killable(tmp_path, "fine_tuning"), 6)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"training\.ckpt' cannot be read as a checkpoint"):
        model.fit(*three_digits())


@pytest.mark.parametrize("place", ["a file", "below a file", "read-only", "no place for folders"])
def test_folder_that_cannot_be_written_to_is_refused_before_training(tmp_path, place):
    file = tmp_path / "file.txt"
    file.write_text("mine")
    folder, reason = file, "it is a file"
    if place == "below a file":
        folder, reason = file / "folder", "Not a directory"
    elif place == "read-only":
        folder, reason = tmp_path / "read-only", "Permission denied"
        folder.mkdir(mode=0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
    elif place == "no place for folders":
        folder, reason = Path("/proc/none"), "No such file or directory"
        if not Path("/proc").is_dir():
            pytest.skip("needs /proc")
    message = rf"^The 'checkpoint' parameter must be a folder .*; got '{folder}' instead \({reason}\)\."
    with pytest.raises(CheckpointError, match=message):
        make_killable(folder, "fine_tuning").fit(*three_digits())
    assert file.read_text() == "mine"


def test_checkpoint_needs_a_seed(tmp_path):
    with pytest.raises(ValueError, match="checkpoint= needs an integer as random_state"):
        make_model(checkpoint=tmp_path, random_state=None).fit(*three_digits())
