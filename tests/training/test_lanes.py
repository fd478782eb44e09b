"""Parts of a batch side by side: the same weights whatever the number of threads."""

import copy
import threading

import numpy as np
import pytest
import torch
from small_models import WAYS, difference, make_model, make_network, three_digits, weights_of
from timm.layers import DropPath
from torch import nn
from torch.utils.checkpoint import checkpoint

from sktl.strategies import L2SP, FineTuning, FromScratch
from sktl.training.gradients import add_gradients, lay_out_gradients
from sktl.training.lanes import Lanes, Splitting, n_parts_for, splitting_of


def steady(drop=0.0):
    network = make_network()
    network.drop.p = drop
    return network


@pytest.mark.parametrize("strategy", sorted(WAYS))
def test_number_of_threads_has_no_influence_on_the_weights(strategy, torch_threads):
    fitted = []
    for n_threads in (1, 2):
        torch_threads(n_threads)
        fitted.append(make_model(strategy, max_epochs=2).fit(*three_digits()))
    assert difference(*fitted) == 0.0


@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": 0.9},
        {"amp": True},
        {"mixup": 0.5},
        {"augment": "light"},
        {"gradient_accumulation": 3},
        {"learning_rate": "auto"},
        {"early_stopping": True, "validation_fraction": 0.3},
    ],
    ids=str,
)
def test_nor_has_it_with_the_refinements_of_training(options, torch_threads):
    fitted = []
    for n_threads in (1, 2):
        torch_threads(n_threads)
        fitted.append(make_model(max_epochs=2, **options).fit(*three_digits()))
    assert difference(*fitted) == 0.0


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("strategy", ["fine_tuning", "from_scratch"])
def test_nor_has_it_for_published_architectures(backbone, strategy, torch_threads):
    """torch.set_num_threads tells MKL too, which has a number of its own."""
    X, y = three_digits()
    fitted = []
    for n_threads in (2, 1):
        torch_threads(n_threads)
        model = make_model(strategy, backbone=backbone, weights=None, image_size=None, batch_size=8)
        fitted.append(model.fit(X[:16], y[:16]))
    assert difference(*fitted) == 0.0


@pytest.mark.parametrize(
    ("shape", "is_tokens", "n_parts"),
    [
        ((32, 3, 32, 32), False, 2),
        ((32, 224, 224, 3), False, 4),
        ((64, 224, 224, 3), False, 8),
        ((32, 128), True, 4),
        ((5, 224, 224, 3), False, 1),
        ((1, 8, 8, 3), False, 1),
    ],
)
def test_number_of_parts_is_a_matter_of_the_batch(shape, is_tokens, n_parts):
    assert n_parts_for(shape, is_tokens) == n_parts


@pytest.fixture
def lanes(torch_threads):
    torch_threads(2)
    with Lanes() as lanes:
        yield lanes


def test_copies_share_weights_and_nothing_else(lanes):
    if lanes.n < 2:
        pytest.skip("one core has one lane")
    network, meeting = steady().train(), threading.Barrier(2)

    def look(copied, item):
        meeting.wait(timeout=30)  # so that there are two at work
        return id(copied), all(map(torch.Tensor.is_set_to, copied.parameters(), network.parameters()))

    results = list(lanes.map(network, look, [0, 1]))
    assert len({number for number, _ in results} | {id(network)}) == 3
    assert all(shared for _, shared in results)


def test_results_come_in_the_order_of_the_items(lanes):
    assert list(lanes.map(nn.Identity(), lambda network, item: item**2, range(20))) == [n**2 for n in range(20)]


def test_error_of_a_part_comes_out_when_nothing_is_at_work_any_more(lanes):
    begun, ended = [], []

    def fail(network, item):
        begun.append(item)
        try:
            if item == 3:
                raise ZeroDivisionError
        finally:
            ended.append(item)

    with pytest.raises(ZeroDivisionError):
        list(lanes.map(nn.Identity(), fail, range(100)))
    assert sorted(begun) == sorted(ended)
    assert len(begun) < 10


def test_gradients_that_share_memory_are_kept_apart():
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    shared = torch.ones(1).expand(2)
    add_gradients([first, second], (shared, shared))
    first.grad.mul_(3)
    assert second.grad.tolist() == [1, 1]
    add_gradients([first, second], (None, shared))
    assert (first.grad.tolist(), second.grad.tolist()) == ([3, 3], [2, 2])


def test_gradients_are_laid_out_like_their_parameters():
    parameter = nn.Parameter(torch.zeros(4, 3, 2, 2))
    gradient = torch.arange(48.0).view(4, 3, 2, 2).to(memory_format=torch.channels_last)
    for _ in range(2):
        add_gradients([parameter], (gradient,))
    lay_out_gradients([parameter])
    assert parameter.grad.stride() == parameter.stride()
    assert torch.equal(parameter.grad, 2 * gradient)


def test_each_parameter_is_in_one_share_with_what_belongs_to_it(lanes):
    parameters = [nn.Parameter(torch.empty(size)) for size in (3, 700_000, 1, 500_000, 20, 0)]
    threads, seen = set(), {}

    def note(parameters, numbers):
        threads.add(threading.get_ident())
        seen.update(zip(numbers, map(id, parameters), strict=True))

    lanes.share_out(note, parameters, range(6))
    assert seen == {number: id(parameter) for number, parameter in enumerate(parameters)}
    assert (threading.get_ident() in threads) == (lanes.n == 1)


def test_error_in_a_share_comes_out(lanes):
    with pytest.raises(ZeroDivisionError):
        lanes.share_out(lambda parameters: 1 / 0, [nn.Parameter(torch.empty(2_000_000))])


class Jealous(FineTuning):
    """A penalty that might remember what it saw."""

    def penalty(self, network, batch, output):
        return output.square().mean()


class Noise(nn.Module):
    """Draws random numbers in a way that nobody knows of."""

    def forward(self, images):
        return images + torch.randn_like(images) if self.training else images


class Running(nn.Module):
    """Keeps statistics in a way that nobody knows of."""

    def __init__(self, largest=0.0):
        super().__init__()
        self.register_buffer("largest", torch.tensor(largest))

    def forward(self, images):
        return images / self.largest.copy_(images.max())


class Ghost(nn.Module):
    """Computes statistics over a few rows at a time (Hoffer et al. 2017)."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        return torch.cat([self.norm(part) for part in images.split(4)])


class OwnBatchNorm(nn.BatchNorm2d):
    """Computes them by another function."""

    def forward(self, images):
        statistics = self.running_mean, self.running_var
        return torch.batch_norm(images, self.weight, self.bias, *statistics, self.training, 0.1, 1e-5, False)


class Checkpointed(nn.Module):
    """Computes a layer again in the backward pass, to save memory."""

    def __init__(self, layer):
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 3, 1), layer

    def forward(self, images):
        return checkpoint(self.layer, self.stem(images), use_reentrant=False)


APART, DRAWING, MEETING = Splitting(True), Splitting(True, draws=True), Splitting(True, meets=True)
NEVER = Splitting(False)


@pytest.mark.parametrize(
    ("network", "strategy", "expected"),
    [
        (steady().eval(), FineTuning(), APART),
        (steady().eval(), L2SP(), APART),
        (steady().eval(), Jealous(), NEVER),
        (steady().train(), FineTuning(), MEETING),
        (steady(0.2).train(), FineTuning(), Splitting(True, draws=True, meets=True)),
        (nn.BatchNorm2d(3, momentum=None).train(), FineTuning(), NEVER),
        (Ghost().train(), FineTuning(), Splitting(False, meets=True)),
        (OwnBatchNorm(3).train(), FineTuning(), Splitting(False, meets=True)),
        (Checkpointed(nn.Dropout(0.5)).train(), FineTuning(), NEVER),
        (Checkpointed(nn.BatchNorm2d(3)).train(), FineTuning(), NEVER),
        (nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 1)).train(), FineTuning(), NEVER),
        (nn.Dropout(0.5).train(), FineTuning(), DRAWING),
        (nn.Dropout2d(0.5).train(), FineTuning(), DRAWING),
        (DropPath(0.5).train(), FineTuning(), DRAWING),
        (nn.Dropout(0.5).eval(), FineTuning(), APART),
        (Noise().train(), FineTuning(), Splitting(False, draws=True)),
        (Running().train(), FineTuning(), NEVER),
        (Running(largest=1.0).train(), FineTuning(), NEVER),
    ],
    ids=str,
)
def test_splitting_goes_by_what_the_rows_of_a_batch_depend_on(network, strategy, expected):
    state = torch.get_rng_state()
    before = copy.deepcopy(network.state_dict())
    images = torch.ones(8, 3, 16, 16)
    assert splitting_of(network, strategy, lambda network, n: network(images[:n])) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


class Roomy(FromScratch):
    """Runs out of memory with more than a few rows."""

    splits_penalty = True

    def penalty(self, network, batch, output):
        if len(batch.rows) > 3:
            raise MemoryError
        return 0.0


@pytest.mark.parametrize("strategy", [Roomy(), "from_scratch"])
def test_batch_normalisation_counts_steps_and_not_parts(strategy):
    """Out of memory too: parts that wait for each other would not save any, so that they then go one by one."""
    model = make_model(strategy, max_epochs=2, batch_size=15).fit(*three_digits())
    n_rows = len(np.unique(three_digits()[0], axis=0))
    for number, value in weights_of(model).items():
        if number.endswith("num_batches_tracked") and strategy == "from_scratch":
            assert int(value) == 2 * -(-n_rows // 15)


def test_penalty_is_asked_for_the_whole_batch_unless_it_says_that_it_can_be_split():
    seen = []

    class Recording(FineTuning):
        def penalty(self, network, batch, output):
            seen.append(len(batch.rows))
            return 0.0

    class RecordingInParts(Recording):
        splits_penalty = True

    X, y = three_digits()
    rows = len(np.unique(X, axis=0))
    for strategy in (Recording(), RecordingInParts()):
        make_model(strategy, backbone=steady(), batch_size=rows).fit(X, y)
    whole, *parts = seen
    assert whole == rows == sum(parts)
    assert len(parts) == 2
