"""The frozen prefix: what counts as frozen, where a network is cut, and that training is the same with and without."""

import copy

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from small_models import Net, difference, make_model, make_network, three_digits
from torch import nn

from sktl.strategies import PartialFineTuning, Strategy
from sktl.training import activations
from sktl.training.network import Network
from sktl.training.prefix import find_prefix
from sktl.training.rate import N_STEPS

WHOLE = {"cache_prefix": False}


class Chosen(Strategy):
    """Trains the backbone's parameters whose names start with a prefix, from an epoch on."""

    updates_batch_norm = True

    def __init__(self, names=(), from_epoch=0):
        self.names = names
        self.from_epoch = from_epoch

    def prepare(self, network):
        self._set(network, self.from_epoch == 0)

    def on_epoch_begin(self, network, epoch):
        self._set(network, epoch >= self.from_epoch)

    def _set(self, network, trained):
        for name, parameter in network.backbone.named_parameters():
            parameter.requires_grad_(trained and name.startswith(tuple(self.names)))


class Skipping(nn.Module):
    """Its last layer also sees what the first one gave."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, images):
        early = self.first(images)
        return (self.third(self.second(early).relu()) + early).mean((2, 3))


class Token(nn.Module):
    """A parameter of its own is used before its frozen layer."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.conv = nn.Conv2d(3, 8, 3, stride=2)

    def forward(self, images):
        return self.conv(images * self.scale).mean((2, 3))


class DropsEarly(Net):
    """Random in the middle of what is frozen, by a function that no module shows."""

    def forward(self, images):
        return self.body(nn.functional.dropout(self.stem(images), 0.5, self.training)).mean((2, 3))


class KeepsStatistics(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8, affine=False)

    def forward(self, images):
        return self.body(self.norm(self.stem(images))).mean((2, 3))


class AddsInPlace(Net):
    """Writes into what a frozen layer gave; nothing can be written into a placeholder."""

    def forward(self, images):
        early = self.stem[0](images)
        early += 1.0
        return self.body(self.stem[1:](early)).mean((2, 3))


def own(module_class):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return module_class()


def prefix_of(backbone, trained):
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    network = Network(backbone, nn.utils.skip_init(nn.Linear, 8, 3), [0.5] * 3, [0.5] * 3, updates_batch_norm=True)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(trained)))
    network.eval()
    network.refresh_frozen()
    return find_prefix(network, torch.from_numpy(images))


def cached_and_whole(strategy, **parameters):
    parameters = {"max_epochs": 3, "batch_size": 16, **parameters}
    cached = make_model(strategy, **parameters).fit(*three_digits())
    return cached, make_model(strategy, **parameters, net_params=WHOLE).fit(*three_digits())


def cuts(model):
    return [entry["frozen_prefix"] for entry in model.history_ if entry["phase"] == "network"]


# The same training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "cut"),
    [
        ("test_resnet", "layer3"),
        ("test_efficientnet", "blocks.3"),
        ("test_vit", "blocks.4"),
        ("test_convnext", "stages.2"),
    ],
)
def test_weights_are_those_of_training_without_the_cache(architecture, cut):
    cached, whole = cached_and_whole("partial", backbone=architecture, weights=None, image_size=32, learning_rate=0.01)
    assert difference(cached, whole) < 1e-5
    assert cached.history_[-1]["train_loss"] < cached.history_[1]["train_loss"]
    assert set(cuts(cached)) == {cut}
    assert "frozen_prefix" not in whole.history_[-1]


def test_weights_are_the_same_for_a_network_of_ones_own():
    cached, whole = cached_and_whole("partial", learning_rate=0.05, early_stopping=True, validation_fraction=0.3)
    assert difference(cached, whole) < 1e-5
    assert cached.history_[-1]["valid_loss"] == pytest.approx(whole.history_[-1]["valid_loss"], rel=1e-4)
    assert cuts(cached) == ["stem"] * 3


def test_dropout_between_frozen_layers_does_not_end_the_prefix():
    layers = [nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    cached, whole = cached_and_whole("partial", backbone=backbone, learning_rate=0.05)
    assert cuts(cached) == ["3"] * 3
    assert difference(cached, whole) < 1e-5


class ActivatesInPlace(Net):
    """Writes into what the last frozen layer gave, and not the same when it does so again."""

    room = 100

    def __init__(self):
        super().__init__()
        self.stem[2] = self.drop = nn.Identity()

    def forward(self, images):
        early = nn.functional.silu(self.stem(images), inplace=True)
        if self.training and len(images) > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return self.body(early).mean((2, 3))


@pytest.mark.parametrize("room", [100, 3])
def test_kept_activations_survive_a_network_that_writes_into_them(monkeypatch, room):
    monkeypatch.setattr(ActivatesInPlace, "room", room)
    cached, whole = cached_and_whole("partial", backbone=own(ActivatesInPlace), learning_rate=0.05)
    assert cuts(cached) == ["stem"] * 3
    assert difference(cached, whole) < 1e-4


def test_each_image_passes_the_prefix_once():
    seen = {"stem": 0, "body": 0}

    class Counting(Net):
        def __init__(self):
            super().__init__()
            self.stem.register_forward_pre_hook(lambda module, inputs: self.count("stem", inputs[0]))
            self.body.register_forward_pre_hook(lambda module, inputs: self.count("body", inputs[0]))

        @staticmethod
        def count(name, images):
            if images.stride(0):  # placeholders have no memory of their own
                seen[name] += len(images)

    make_model(PartialFineTuning(C=1.0), backbone=Counting(), max_epochs=10, batch_size=16).fit(*three_digits())
    n = len(three_digits()[1])
    assert n <= seen["stem"] < 3 * n  # the head's embeddings, the prefix, and a few tries
    assert seen["body"] > 10 * n


@pytest.mark.parametrize(
    ("parameters", "n_variants"),
    [
        ({"max_epochs": 3}, 1),
        ({"max_epochs": 1}, 1),  # the test has seen them all
        ({"max_epochs": 3, "early_stopping": True, "validation_fraction": 0.3}, 1),
        ({"max_epochs": 5, "augment": "rand-m5", "augment_copies": 4}, 4),
        ({"max_epochs": 3, "amp": True}, 1),
    ],
)
def test_each_image_passes_the_prefix_once_for_the_learning_rate_and_all_epochs(parameters, n_variants):
    seen = []

    class Counting(Net):
        def __init__(self):
            super().__init__()
            self.stem.register_forward_pre_hook(lambda module, inputs: self.count(inputs[0]))

        @staticmethod
        def count(images):
            if images.stride(0) and len(images) > 2:  # no placeholders, which have no memory of their own, and no tries
                seen.append(len(images))

    strategy = Chosen(names=("body",))  # which asks for no embeddings
    make_model(strategy, backbone=Counting(), learning_rate="auto", batch_size=16, **parameters).fit(*three_digits())
    assert sum(seen) == n_variants * len(three_digits()[1])


class TrainedInTheSecondEpoch(Chosen):
    """Freezes the stem before and after."""

    def on_epoch_begin(self, network, epoch):
        self._set(network, True)
        network.backbone.stem.requires_grad_(epoch == 1)


def test_activations_of_weights_that_the_test_of_learning_rates_changed_are_left_aside():
    strategy = TrainedInTheSecondEpoch(names=("stem", "body"))
    options = {"max_epochs": 3, "batch_size": 16, "early_stopping": True}
    found = make_model(strategy, learning_rate="auto", **options).fit(*three_digits())
    given = make_model(strategy, learning_rate=found.learning_rate_, **options).fit(*three_digits())
    assert cuts(found) == ["stem", "", "stem"]
    assert difference(found, given) == 0.0


class Shifting(Net):
    """Adds a number of its own between its parts."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return self.body(self.stem(images) + self.shift).mean((2, 3))


class ShiftTrainedInTheSecondEpoch(Chosen):
    """Freezes it before and after; in a training of one epoch it stays frozen."""

    def on_epoch_begin(self, network, epoch):
        self._set(network, True)
        network.backbone.shift.requires_grad_(epoch == 1)


def test_weights_of_the_code_around_the_prefix_count_too():
    strategy = ShiftTrainedInTheSecondEpoch(names=("body.1",))
    options = {"backbone": Shifting(), "max_epochs": 1, "batch_size": 16}
    found = make_model(strategy, learning_rate="auto", **options).fit(*three_digits())
    given = make_model(strategy, learning_rate=found.learning_rate_, **options).fit(*three_digits())
    assert difference(found, given) < 1e-5


class Predicting(Callback):
    """Runs the net in training before the first epoch."""

    def on_train_begin(self, net, X=None, **kwargs):
        self.output_ = net.forward(X)


def test_callbacks_may_run_the_net_after_the_test_of_learning_rates():
    outputs = []
    for rate in ("auto", 0.01):
        callback = Predicting()
        make_model("partial", learning_rate=rate, max_epochs=2, callbacks=[callback]).fit(*three_digits())
        outputs.append(callback.output_)
    torch.testing.assert_close(*outputs)


def test_variants_that_no_epoch_reads_do_not_pass_the_prefix(monkeypatch):
    filled = []
    fill = activations._fill
    monkeypatch.setattr(activations, "_fill", lambda *args: filled.append(args[-1]) or fill(*args))
    strategy = Chosen(names=("body", "stem"), from_epoch=2)
    options = {"augment": "rand-m5", "augment_copies": 4, "batch_size": 16, "learning_rate": 0.05}
    cached = make_model(strategy, max_epochs=5, **options).fit(*three_digits())
    assert filled == [0, 1]  # from the third epoch on all is trained
    assert cuts(cached) == ["backbone", "backbone", "", "", ""]
    whole = make_model(strategy, max_epochs=5, net_params=WHOLE, **options).fit(*three_digits())
    assert difference(cached, whole) < 1e-5
    filled.clear()
    make_model("partial", max_epochs=5, **{**options, "learning_rate": "auto"}).fit(*three_digits())
    assert filled == [0, 1, 2, 3]  # the test of learning rates, then the epochs


def test_no_activations_are_kept_for_the_learning_rate_where_none_are_wanted(monkeypatch):
    monkeypatch.setattr(activations.PrefixOnce, "on_epoch_begin", lambda self, net, **kwargs: pytest.fail("are kept"))
    make_model("partial", learning_rate="auto", net_params=WHOLE).fit(*three_digits())


def test_no_activations_are_kept_for_the_learning_rate_where_no_image_comes_twice(monkeypatch):
    monkeypatch.setattr(activations.PrefixOnce, "on_epoch_begin", lambda self, net, **kwargs: pytest.fail("are kept"))
    kept = {"augment": "light", "augment_copies": N_STEPS, "batch_size": 100}
    make_model("partial", learning_rate="auto", **kept).fit(*three_digits())


class Tight(Net):
    """Has memory for so many images at a time."""

    room = 100

    def __init__(self):
        super().__init__()
        self.drop = nn.Identity()  # its random numbers would depend on the parts

    def forward(self, images):
        if len(images) > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return super().forward(images)


def test_prefix_that_does_not_fit_into_memory_is_run_on_fewer_rows(monkeypatch):
    options = {"max_epochs": 3, "batch_size": 30, "learning_rate": 0.02, "early_stopping": True}
    roomy = make_model("partial", backbone=own(Tight), **options).fit(*three_digits())
    monkeypatch.setattr(Tight, "room", 3)
    tight = make_model("partial", backbone=own(Tight), **options).fit(*three_digits())
    assert cuts(tight) == ["stem"] * 3
    assert difference(roomy, tight) < 1e-5


def test_prefix_is_found_anew_when_the_strategy_unfreezes():
    strategy = Chosen(names=("stem", "body"), from_epoch=1)
    options = {"max_epochs": 3, "batch_size": 16, "learning_rate": 0.05}
    cached = make_model(strategy, **options).fit(*three_digits())
    whole = make_model(strategy, **options, net_params=WHOLE).fit(*three_digits())
    assert cuts(cached) == ["backbone", "", ""]
    assert difference(cached, whole) < 1e-5


class TrainedAtFirst(Chosen):
    """Freezes the stem after the first epoch."""

    def on_epoch_begin(self, network, epoch):
        self._set(network, True)
        if epoch:
            network.backbone.stem.requires_grad_(False)


def test_average_of_what_was_trained_before_it_was_frozen_has_another_prefix():
    strategy = TrainedAtFirst(names=("stem", "body"))
    options = {"batch_size": 16, "learning_rate": 0.1, "early_stopping": True, "validation_fraction": 0.3}
    cached, whole = cached_and_whole(strategy, ema_decay=0.9, **options)
    assert cuts(cached) == [""] * 3
    for entry, expected in zip(cached.history_, whole.history_, strict=True):
        assert entry["valid_loss"] == pytest.approx(expected["valid_loss"], rel=1e-5)
    assert cuts(cached_and_whole(strategy, **options)[0]) == ["", "stem", "stem"]
    assert cuts(cached_and_whole("partial", ema_decay=0.9, **options)[0]) == ["stem"] * 3


def test_a_frozen_backbone_is_cut_at_its_end():
    network = make_network()
    network.drop = nn.Identity()
    cached, whole = cached_and_whole(Chosen(), backbone=network, learning_rate=0.1)
    assert cuts(cached) == ["backbone"] * 3
    assert difference(cached, whole) < 1e-5


@pytest.mark.parametrize(("budget", "cut"), [(2**31, "stem"), (0, "stem")])
def test_activations_above_the_budget_go_to_a_file(monkeypatch, budget, cut):
    monkeypatch.setattr(activations, "RAM_BUDGET", budget)
    kept = activations.reserve((4, 3), torch.bfloat16)
    kept[:] = 2.0
    assert kept.shape == (4, 3)
    assert kept.sum() == 24
    in_memory = make_model("partial", max_epochs=2).fit(*three_digits())
    monkeypatch.undo()
    assert difference(in_memory, make_model("partial", max_epochs=2).fit(*three_digits())) == 0.0
    assert cuts(in_memory) == [cut] * 2


def test_without_room_the_network_is_run_whole(monkeypatch):
    monkeypatch.setattr(activations, "RAM_BUDGET", 0)
    monkeypatch.setattr(activations, "_DISK_SHARE", 0.0)
    assert cuts(make_model("partial", max_epochs=2).fit(*three_digits())) == [""] * 2


# Where a network is cut -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "trained", "cut"),
    [
        (Net, ["body"], "stem"),
        (Net, ["body.1"], "body.0"),
        (Net, ["stem"], None),
        (Net, ["stem.1"], "stem.0"),
        (Net, ["stem.0.bias", "body"], None),
        (Skipping, ["third"], "first"),  # the second layer alone would lose what is added later
        (Skipping, ["first"], None),
        (Token, ["scale"], None),
        (Token, ["none"], ""),
        (DropsEarly, ["body"], "stem"),
        (DropsEarly, ["none"], ""),
        (KeepsStatistics, ["body"], "stem"),
        (AddsInPlace, ["body"], "stem.0"),
    ],
)
def test_cut_comes_before_all_that_training_may_change(backbone, trained, cut):
    prefix = prefix_of(own(backbone), trained)
    assert (None if prefix is None else prefix.cut.name) == cut


def test_looking_for_the_cut_changes_nothing():
    backbone = own(KeepsStatistics)
    before = copy.deepcopy(backbone.state_dict())
    attributes = {name: set(vars(part)) for name, part in backbone.named_modules()}
    random_state = torch.get_rng_state()
    assert prefix_of(backbone, ["body"]) is not None
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert {name: set(vars(part)) for name, part in backbone.named_modules()} == attributes


def test_prefix_and_rest_give_what_the_network_gives(rng):
    backbone = own(Net)
    prefix = prefix_of(backbone, ["body"])
    images = torch.from_numpy(rng.normal(size=(5, 3, 16, 16)).astype(np.float32))
    backbone.eval()
    activations = prefix.run(backbone, images)
    assert activations.shape == (5, *prefix.cut.shape)
    assert torch.equal(prefix.finish(backbone, backbone, activations), backbone(images))
