"""Augmentation, mixtures, smoothed labels, averaged weights, precision: what they compute, and again the same."""

import copy

import numpy as np
import pytest
import torch
from killed_fit import Kill
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from small_models import Net, difference, make_model, make_network, three_digits, weights_of
from torch import nn

from sktl import FineTuneRegressor
from sktl.exceptions import InputError
from sktl.inputs import ImagePreprocessor, open_rows
from sktl.strategies import FineTuning
from sktl.training import Targets, TrainingData, VariantRows, Views, precision
from sktl.training.mixing import Mixing
from sktl.training.precision import arithmetic_intensity, autocast_dtype

CONFIG = {"input_size": (3, 16, 16)}


class Plus:
    """A variant is the picture plus its seed."""

    key = "plus"

    def __call__(self, pixels, seed):
        return pixels + np.uint8(seed % 251)


def data_of(views, n=6):
    images = np.arange(n, dtype=np.uint8).repeat(16 * 16 * 3).reshape(n, 16, 16, 3)
    return TrainingData(open_rows(images), Targets(np.arange(n) % 2, np.ones(n)), ImagePreprocessor(CONFIG), views)


# Augmentation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_kept", [None, 2])
def test_variants_change_with_the_epoch_and_come_back_if_they_are_kept(n_kept):
    data = data_of(Views(Plus(), 7, n_kept))
    seen = []
    for epoch in range(4):
        data.epoch = epoch
        seen.append(data.__getitems__([3, 1, 5])[0].numpy())
        one = data.__getitems__([1])[0].numpy()
        np.testing.assert_array_equal(one[0], seen[-1][1])  # alone or in a crowd
    same = [np.array_equal(seen[0], other) for other in seen]
    assert same == [True, False, n_kept == 2, False]


def test_variants_as_rows_are_those_of_the_loop():
    views = Views(Plus(), 7, 3)
    data, rows = data_of(views), VariantRows(data_of(None).rows, ImagePreprocessor(CONFIG), views)
    assert len(rows) == 18
    assert len({rows[index].digest for index in range(18)}) == 18
    for number in range(3):
        pixels = data.inputs(torch.tensor([4]), number)[0].numpy()
        config = ImagePreprocessor(CONFIG).config
        expected = (pixels / 255 - config["mean"]) / config["std"]
        np.testing.assert_allclose(rows[number * 6 + 4].model_input(), expected.transpose(2, 0, 1), rtol=1e-5)
        assert rows.label(number * 6 + 4) == rows.rows.label(4)


@pytest.mark.parametrize("strategy", ["fine_tuning", "feature_extraction", "partial"])
def test_augmented_training_is_repeatable_and_differs_from_plain(strategy):
    options = {"augment": "light", "max_epochs": 2, "learning_rate": 0.01}
    first = make_model(strategy, **options).fit(*three_digits())
    assert difference(first, make_model(strategy, **options).fit(*three_digits())) == 0.0
    assert difference(first, make_model(strategy, **{**options, "augment": None}).fit(*three_digits())) > 1e-4
    assert difference(first, make_model(strategy, **options, random_state=1).fit(*three_digits())) > 1e-4


def test_a_variant_that_changes_nothing_is_no_augmentation():
    for strategy in ("fine_tuning", "feature_extraction", "partial"):
        plain = make_model(strategy, max_epochs=3).fit(*three_digits())
        same = make_model(strategy, max_epochs=3, augment=lambda pixels, rng: pixels, augment_copies=2)
        assert difference(plain, same.fit(*three_digits())) < 1e-3


def test_kept_variants_pass_the_frozen_layers_once():
    options = {"augment": "light", "augment_copies": 2, "max_epochs": 5, "learning_rate": 0.02}
    kept = make_model("partial", **options).fit(*three_digits())
    whole = make_model("partial", **options, net_params={"cache_prefix": False}).fit(*three_digits())
    assert [entry["frozen_prefix"] for entry in kept.history_[1:]] == ["stem"] * 5
    assert difference(kept, whole) < 1e-4
    fresh = make_model("partial", **{**options, "augment_copies": None}).fit(*three_digits())
    assert "frozen_prefix" not in fresh.history_[-1]


def test_validation_images_are_not_augmented():
    X, y = three_digits()
    seen = []

    def spy(pixels, rng):
        seen.append(pixels.copy())
        return pixels

    make_model(augment=spy, max_epochs=2).fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:])
    assert len({pixels.tobytes() for pixels in seen}) <= 30
    assert len(seen) >= 60


def test_augmentation_of_what_is_no_image_is_refused():
    X, y = three_digits()
    with pytest.raises(InputError, match="augment= needs images"):
        make_model(augment="light").set_params(image_shape=None).fit(X, y)
    with pytest.raises(ValueError, match="'augment' parameter must be"):
        make_model(augment="heavy").fit(X, y)


def test_augmentation_can_be_searched():
    search = GridSearchCV(make_model(), {"augment": [None, "light"], "mixup": [0.0, 0.2]}, cv=2).fit(*three_digits())
    assert len(search.cv_results_["params"]) == 4
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()


# Mixtures and labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixture_holds_both_images_in_the_share_that_it_names(mixup, cutmix):
    images = torch.arange(5.0)[:, None, None, None].expand(5, 3, 16, 16).clone()
    before, shares = images.clone(), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(20):
            mixed, share = Mixing(mixup, cutmix).mix(images)
            expected = share * images.mean((1, 2, 3)) + (1 - share) * images.flip(0).mean((1, 2, 3))
            torch.testing.assert_close(mixed.mean((1, 2, 3)), expected, rtol=1e-4, atol=1e-4)
            shares.append(share)
    assert torch.equal(images, before)
    assert len(set(shares)) > 10


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"label_smoothing": 0.1}, {"ema_decay": 0.9}])
def test_refined_training_is_repeatable_and_differs_from_plain(options):
    shared = {"max_epochs": 2, "batch_size": 15, "learning_rate": 0.02}
    first = make_model(**shared, **options).fit(*three_digits())
    assert difference(first, make_model(**shared, **options).fit(*three_digits())) == 0.0
    assert difference(first, make_model(**shared).fit(*three_digits())) > 1e-5


def test_loss_of_mixtures_heeds_labels_and_weights_of_both():
    model = make_model(mixup=0.5, batch_size=45).fit(*three_digits())
    net = model.net_.initialize()
    y_pred = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    target, weight = torch.tensor([0, 1, 2, 0]), torch.tensor([1.0, 2.0, 0.5, 3.0])
    known = {"target": target, "weight": weight, "row": torch.arange(4)}
    _, mixed = net._mixed(torch.zeros(4, 3, 8, 8), known)
    share = float(mixed["share"][0])
    losses = -torch.log_softmax(y_pred, dim=1)
    rows = torch.arange(4)
    expected = share * losses[rows, target] * weight + (1 - share) * losses[rows, target.flip(0)] * weight.flip(0)
    assert float(net.get_loss(y_pred, mixed, training=True)) == pytest.approx(float(expected.mean()))


def test_smoothed_labels_keep_the_network_from_certainty():
    options = {"max_epochs": 30, "learning_rate": 0.05}
    sharp = make_model(**options).fit(*three_digits()).predict_proba(three_digits()[0]).max(axis=1).mean()
    smooth = make_model(**options, label_smoothing=0.3).fit(*three_digits()).predict_proba(three_digits()[0])
    assert smooth.max(axis=1).mean() < sharp - 0.05


@pytest.mark.parametrize("n_labels", [None, 3])
def test_validation_loss_is_of_the_labels_as_they_are(n_labels):
    X, y = three_digits()
    y = y if n_labels is None else np.eye(n_labels, dtype=int)[y]
    model = make_model(label_smoothing=0.5, mixup=0.4, dropout=0.3, max_epochs=2, learning_rate=0.02)
    model.fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:])
    loss = log_loss(y[30:].ravel(), model.predict_proba(X[30:]).ravel() if n_labels else model.predict_proba(X[30:]))
    assert min(epoch["valid_loss"] for epoch in model.history_) == pytest.approx(loss, rel=1e-4)


def test_numbers_can_be_mixed_too():
    X, y = three_digits()
    model = FineTuneRegressor(Net(), "fine_tuning", image_shape=(8, 8), image_size=16, max_epochs=2, random_state=0)
    assert np.isfinite(model.set_params(mixup=0.2, ema_decay=0.9, augment="light").fit(X, y).predict(X)).all()


# Averaged weights -----------------------------------------------------------------------------------------------------


class Recorder(Callback):
    """Keeps the weights after each step."""

    def __init__(self):
        self.weights = []

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.weights.append(net.module_.head.weight.detach().clone())


def test_result_is_the_moving_average_of_the_weights():
    recorder = Recorder()
    options = {"max_epochs": 4, "batch_size": 15, "learning_rate": 0.02}
    model = make_model(**options, ema_decay=0.7, callbacks=[recorder]).fit(*three_digits())
    average = torch.zeros_like(recorder.weights[0])  # where the head starts
    for step, weights in enumerate(recorder.weights, 1):
        decay = 0.0 if step == 1 else min(0.7, 1 - step ** (-2 / 3))  # timm's warm-up
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(model.net_.module_.head.weight.detach(), average, rtol=1e-4, atol=1e-6)


def test_averaged_weights_are_what_is_validated_and_what_is_frozen_stays():
    X, y = three_digits()
    model = make_model("partial", max_epochs=3, ema_decay=0.8, learning_rate=0.02)
    model.fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:])
    proba = model.predict_proba(X[30:])
    loss = -np.log(proba[np.arange(15), y[30:]]).mean()
    best = min(epoch["valid_loss"] for epoch in model.history_ if "valid_loss" in epoch)
    assert best == pytest.approx(loss, rel=1e-3)
    before, after = make_network().stem.state_dict(), weights_of(model)
    for name, value in before.items():
        assert torch.equal(after[f"stem.{name}"], value)


@pytest.mark.parametrize("options", [{"ema_decay": 0.8, "mixup": 0.4, "augment": "light", "cutmix": 1.0}])
def test_refined_fit_that_was_interrupted_goes_on_to_the_same_weights(tmp_path, options):
    class Interrupt(Kill):
        def on_batch_begin(self, net, training=False, **kwargs):
            self.step -= training
            if training and self.step == 0:
                raise KeyboardInterrupt

    options = {**options, "max_epochs": 4, "batch_size": 15, "learning_rate": 0.02}
    model = make_model(**options, checkpoint=tmp_path, callbacks=[Interrupt(8)])
    with pytest.raises(KeyboardInterrupt):
        model.fit(*three_digits())
    model.set_params(callbacks=None).fit(*three_digits())
    assert difference(model, make_model(**options).fit(*three_digits())) == 0.0


# Precision ------------------------------------------------------------------------------------------------------------


class Depthwise(nn.Module):
    """As a mobile network: a convolution per channel, and few channels."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 64, 1))

    def forward(self, images):
        return self.layers(images).mean((2, 3))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3))

    def forward(self, images):
        return self.layers(images).mean((2, 3))


def test_intensity_counts_multiplications_per_number():
    network = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6, 5))
    before = copy.deepcopy(network.state_dict())
    found = arithmetic_intensity(network, torch.zeros(2, 4, 3, 3))
    assert found == pytest.approx((6 * 36 + 5 * 6) / 11)
    assert not any(layer._forward_hooks for layer in network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("amp", "network", "native", "dtype", "device", "expected"),
    [
        ("auto", Dense, True, "auto", "cpu", torch.bfloat16),
        ("auto", Depthwise, True, "auto", "cpu", None),
        ("auto", Depthwise, True, "auto", "cuda", torch.bfloat16),
        ("auto", Dense, False, "auto", "cpu", None),
        ("auto", Dense, False, "auto", "cuda", None),
        ("auto", Dense, True, "float32", "cpu", None),
        (True, Depthwise, False, "auto", "cpu", torch.bfloat16),
        (False, Dense, True, "auto", "cpu", None),
        (np.True_, Depthwise, False, "auto", "cpu", torch.bfloat16),
        (np.False_, Dense, True, "auto", "cpu", None),
    ],
)
def test_precision_follows_the_hardware_and_the_network(monkeypatch, amp, network, native, dtype, device, expected):
    monkeypatch.setattr(precision, "resolve_dtype", lambda *_: torch.bfloat16 if native else torch.float32)
    images = torch.zeros(2, 3, 16, 16)
    assert autocast_dtype(amp, network(), images, torch.device(device), dtype) == expected


@pytest.mark.parametrize("strategy", ["fine_tuning", "partial"])
def test_training_in_bfloat16_keeps_weights_in_float32_and_says_so(strategy):
    options = {"max_epochs": 3, "learning_rate": 0.02}
    plain = make_model(strategy, **options, amp=False).fit(*three_digits())
    mixed = make_model(strategy, **options, amp=True).fit(*three_digits())
    assert {entry["precision"] for entry in plain.history_ if entry["phase"] == "network"} == {"float32"}
    assert {entry["precision"] for entry in mixed.history_ if entry["phase"] == "network"} == {"bfloat16"}
    assert all(value.dtype != torch.bfloat16 for value in weights_of(mixed).values())
    assert 0.0 < difference(plain, mixed) < 0.1
    whole = make_model(strategy, **options, amp=True, net_params={"cache_prefix": False}).fit(*three_digits())
    assert difference(mixed, whole) < 5e-3


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("amp", "yes"), ("mixup", -1.0), ("label_smoothing", 1.0), ("ema_decay", 1.0), ("augment_copies", 0)],
)
def test_invalid_parameter_is_named(parameter, value):
    with pytest.raises(ValueError, match=f"'{parameter}' parameter of FineTuneClassifier must be"):
        make_model(FineTuning(), **{parameter: value}).fit(*three_digits())


# Rows in parts --------------------------------------------------------------------------------------------------------


def test_rows_in_parts_are_augmented_and_mixed_anew_in_each_pass():
    seen = []

    def spy(pixels, rng):
        seen.append(int(rng.integers(1000)))
        return pixels

    X, y = three_digits()
    model = make_model(augment=spy, mixup=0.2)
    for _ in range(2):
        model.partial_fit(X[:4], y[:4], classes=[0, 1, 2])
    assert len(seen) == 8
    assert seen[:4] != seen[4:]
    again = make_model(augment=spy, mixup=0.2)
    for _ in range(2):
        again.partial_fit(X[:4], y[:4], classes=[0, 1, 2])
    assert difference(model, again) == 0.0


@pytest.mark.parametrize(
    ("strategy", "options"), [("fine_tuning", {"ema_decay": 0.9}), ("feature_extraction", {"augment": "light"})]
)
def test_what_rows_in_parts_cannot_have_is_refused(strategy, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} should be None with partial_fit"):
        make_model(strategy, **options).partial_fit(*three_digits(), classes=[0, 1, 2])
