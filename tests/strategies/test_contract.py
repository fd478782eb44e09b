"""The contract of strategies: which hooks fit calls, and what they may change."""

import numpy as np
import pytest
import torch
from small_models import Net, difference, make_model, make_network, three_digits
from torch import nn

from sktl.backbones import fingerprint, load_backbone
from sktl.exceptions import StrategyError
from sktl.strategies import FineTuning, LinearProbeThenFineTuning, PartialFineTuning, Strategy


@pytest.fixture
def few():
    return three_digits()


# The contract of strategies -------------------------------------------------------------------------------------------


class Recorder(LinearProbeThenFineTuning):
    """Notes which hooks were called, and trains biases alone."""

    calls: list = []  # noqa: RUF012 -- shared with the copies that fit makes

    def prepare(self, network):
        self.calls.append("prepare")
        for name, parameter in network.backbone.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))

    def on_epoch_begin(self, network, epoch):
        self.calls.append(("epoch", epoch))

    def penalty(self, network, batch, output):
        self.calls.append(("penalty", len(batch.images), tuple(output.shape)))
        return 0.0

    def finish(self, network):
        self.calls.append(("finish", network.training))


def test_hooks_are_called_in_order(few):
    Recorder.calls.clear()
    model = make_model(Recorder(C=2.0), max_epochs=2, batch_size=30)
    strategy = model.strategy
    model.fit(*few)
    assert Recorder.calls[0] == "prepare"
    assert [call for call in Recorder.calls if call[0] == "epoch"] == [("epoch", 0), ("epoch", 1)]
    penalties = [call for call in Recorder.calls if call[0] == "penalty"]
    assert len(penalties) == 4
    assert sum(call[1] for call in penalties) == 2 * len(few[1])
    assert Recorder.calls[-1] == ("finish", False)
    assert model.strategy is strategy
    assert model.strategy_ is not strategy
    assert model.strategy_.C == 2.0


def test_strategy_decides_what_is_trained(few):
    model = make_model(Recorder()).fit(*few)
    before, after = load_backbone(make_network(), image_size=16).module, model.backbone_.module
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert torch.equal(old, new) != name.endswith("bias"), name


class Pull(FineTuning):
    """Makes the head's bias large through the loss."""

    def penalty(self, network, batch, output):
        return 1000 * (network.head.bias - 1).square().sum()


def test_penalty_is_part_of_the_loss(few):
    plain = make_model(max_epochs=3, learning_rate=0.05, batch_size=8).fit(*few)
    pulled = make_model(Pull(), max_epochs=3, learning_rate=0.05, batch_size=8).fit(*few)
    assert pulled.net_.module_.head.bias.mean() > plain.net_.module_.head.bias.mean() + 0.3
    assert pulled.history_[0]["train_loss"] > 100


class Halve(FineTuning):
    """Changes the trained weights at the very end, as weight averaging does."""

    def __init__(self, factor=0.5, backbone_lr_scale=0.3):
        self.factor = factor
        super().__init__(backbone_lr_scale)

    def finish(self, network):
        with torch.no_grad():
            for parameter in network.backbone.parameters():
                parameter.mul_(self.factor)


def test_finish_changes_what_predicts(few):
    """Two strategies that differ in ``finish`` alone must not share embeddings."""
    plain, halved = make_model(Halve(1.0)).fit(*few), make_model(Halve(0.5)).fit(*few)
    weight = "body.0.weight"
    assert torch.equal(plain.backbone_.module.state_dict()[weight] * 0.5, halved.backbone_.module.state_dict()[weight])
    for model in (plain, halved):
        assert model.backbone_.fingerprint == fingerprint(model.backbone_.module, model.backbone_.data_config)
    assert not np.array_equal(plain.transform(few[0]), halved.transform(few[0]))


class Unfreeze(Strategy):
    """Frozen in the first epoch, trained in the second."""

    def prepare(self, network):
        network.backbone.requires_grad_(False)

    def on_epoch_begin(self, network, epoch):
        if epoch == 1:
            network.backbone.body.requires_grad_(True)


def test_strategy_may_unfreeze_as_training_goes_on(few):
    before = load_backbone(make_network(), image_size=16).module.state_dict()
    one, two = (make_model(Unfreeze(), max_epochs=n).fit(*few).backbone_.module.state_dict() for n in (1, 2))
    assert all(torch.equal(one[name], before[name]) for name in before)
    assert torch.equal(two["stem.0.weight"], before["stem.0.weight"])
    assert not torch.equal(two["body.0.weight"], before["body.0.weight"])


class Nothing(Strategy):
    def prepare(self, network):
        for part in (network.backbone, network.head):
            part.requires_grad_(False)


def test_strategy_that_trains_nothing_is_refused(few):
    with pytest.raises(StrategyError, match=r"Nothing trains nothing in this step: .* requires_grad"):
        make_model(Nothing()).fit(*few)


class Detached(Net):
    """Computes without gradients, as wrappers that were made for embeddings alone do."""

    @torch.no_grad()
    def forward(self, images):
        return super().forward(images)


class WithoutGradientsInEval(Net):
    """Saves memory where it is not trained."""

    def forward(self, images):
        with torch.set_grad_enabled(self.training):
            return super().forward(images)


class Headed(Net):
    """Still has a classifier, which its output does not pass."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(16, 5)


@pytest.mark.parametrize(
    ("network", "strategy"),
    [(Detached(), "wise_ft"), (Detached(), "partial"), (Headed(), "partial"), (Headed(), "gradual_unfreezing")],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_training_that_would_change_nothing_of_the_backbone_is_refused(network, strategy, method):
    X, y = three_digits()
    model = make_model(strategy, backbone=network)
    with pytest.raises(StrategyError, match="No gradient reaches what is to be trained of the backbone"):
        getattr(model, method)(X, y, **({} if method == "fit" else {"classes": np.unique(y)}))
    make_model("feature_extraction", backbone=network).fit(X, y)


def test_a_backbone_may_compute_without_gradients_where_it_is_not_trained(few):
    backbone = WithoutGradientsInEval()
    before = backbone.state_dict()
    trained = make_model("wise_ft", backbone=backbone).fit(*few).backbone_.module.state_dict()
    assert not torch.equal(trained["stem.0.weight"], before["stem.0.weight"])


class Grouped(LinearProbeThenFineTuning):
    """Gives parameter groups as torch's own documentation writes them."""

    def __init__(self, named=True):
        self.named = named

    def param_groups(self, network, lr):
        parts = (network.backbone, network.head)
        return [{"params": part.named_parameters() if self.named else part.parameters(), "lr": lr} for part in parts]


def test_parameter_groups_may_be_iterators(few):
    model = make_model(Grouped()).fit(*few)
    n_trained = sum(len(group["params"]) for group in model.net_.optimizer_.param_groups)
    assert n_trained == len(list(model.net_.module_.parameters()))


def test_parameters_without_names_are_refused(few):
    with pytest.raises(StrategyError, match=r"Grouped.param_groups must give named parameters.*named_parameters\(\)"):
        make_model(Grouped(named=False)).fit(*few)


class Mirrored(PartialFineTuning):
    """Asks for the same embeddings of an image and its mirror image."""

    def penalty(self, network, batch, output):
        mirrored = network.backbone(network.normalise(batch.images.flip(2)))
        return (mirrored - batch.embeddings).square().mean()


def test_a_penalty_is_given_images_where_layers_are_frozen_too(few):
    model = make_model(Mirrored(), max_epochs=2).fit(*few)
    assert difference(model, make_model("partial", max_epochs=2).fit(*few)) > 0
