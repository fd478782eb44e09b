"""Parts of a batch that run side by side know each other's statistics, and draw random numbers of their own."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from small_models import make_network
from torch import nn
from torch.nn import functional

from sktl.training.lanes import Lanes, Splitting
from sktl.training.lockstep import Meeting, PartOfBatch, PartsDisagreeError

PARTS = [slice(0, 3), slice(3, 8), slice(8, 12)]


def in_parts(function, parts, cores=2):
    """Call a function with each part, side by side as parts of one batch."""
    meeting = Meeting(len(parts), threading.Semaphore(cores))

    def run(number):
        with meeting.attended(), PartOfBatch(number, number, meeting) as part:
            result = function(parts[number])
            part.end()
            return result

    with ThreadPoolExecutor(len(parts)) as pool:
        try:
            return list(pool.map(run, range(len(parts))))
        except threading.BrokenBarrierError:
            raise meeting.failure from None


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return 5 + 3 * torch.randn(12, 4, 6, 6, generator=generator)


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batch_normalisation_in_parts_is_that_of_the_whole_batch(images, cores, affine, layout):
    images = images.contiguous(memory_format=layout).requires_grad_()
    layers = [nn.BatchNorm2d(4, affine=affine) for _ in range(2)]
    for layer in layers if affine else ():
        nn.init.constant_(layer.weight, 2.0)
    whole, split = layers
    slope = torch.linspace(-1, 1, images.numel()).view_as(images)
    expected = whole(images)
    wanted = torch.autograd.grad((expected.square() * slope).sum(), [images, *whole.parameters()])

    def run(part):
        rows = images[part].detach().requires_grad_()
        output = split(rows)
        loss = (output.square() * slope[part]).sum()
        return output.detach(), *torch.autograd.grad(loss, [rows, *split.parameters()])

    outputs, of_rows, *of_parameters = zip(*in_parts(run, PARTS, cores), strict=True)
    torch.testing.assert_close(torch.cat(outputs), expected)
    torch.testing.assert_close(torch.cat(of_rows), wanted[0], atol=1e-5, rtol=1e-4)
    for parts, gradient in zip(of_parameters, wanted[1:], strict=True):
        torch.testing.assert_close(sum(parts), gradient, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(split.running_mean, whole.running_mean)
    torch.testing.assert_close(split.running_var, whole.running_var)


def test_batch_normalisation_of_half_precision_counts_in_full_precision(images):
    half = (100 + images).bfloat16()
    layer = nn.BatchNorm2d(4)
    outputs = torch.cat(in_parts(lambda part: layer(half[part]).detach(), PARTS))
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(layer.running_mean, half.float().mean((0, 2, 3)) / 10)


def test_two_layers_keep_their_statistics_apart(images):
    layers = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    with torch.no_grad():
        outputs = torch.cat(in_parts(lambda part: layers(images[part]), PARTS))
        torch.testing.assert_close(outputs, layers(images), atol=1e-5, rtol=1e-4)


def test_single_value_per_channel_is_the_error_that_torch_gives():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        in_parts(lambda part: nn.BatchNorm1d(3)(torch.ones(1, 3)[part]), [slice(0, 1)])


@pytest.mark.parametrize("layer", [nn.Dropout(0.25), nn.Dropout(0.25, inplace=True), nn.Dropout2d(0.25)], ids=str)
def test_dropout_keeps_the_mean(layer):
    with PartOfBatch(seed=1):
        output = layer(torch.ones(64, 64, 8, 8))
    assert output.unique().tolist() == [0, pytest.approx(4 / 3)]
    assert float(output.mean()) == pytest.approx(1, abs=0.03)
    if isinstance(layer, nn.Dropout2d):
        assert torch.equal(output, output[:, :, :1, :1].expand_as(output))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_everything(p):
    with PartOfBatch():
        assert torch.equal(functional.dropout(torch.ones(5), p), torch.full((5,), 1 - p))
        assert torch.equal(functional.dropout(torch.ones(5), p, training=False), torch.ones(5))


def test_random_numbers_are_those_of_the_part():
    state = torch.get_rng_state()

    def draw(seed):
        with PartOfBatch(seed=seed):
            return functional.dropout(torch.ones(100)), torch.empty(100).bernoulli_(0.5)

    first, again, other = draw(1), draw(1), draw(2)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_attention_drops_from_the_probabilities(mask):
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 3, 20, 8, generator=generator)
    value = torch.ones(2, 3, 20, 8)
    masks = {None: None, "bool": torch.ones(20, 20).tril().bool(), "float": torch.randn(20, 20, generator=generator)}
    exact = functional.scaled_dot_product_attention(query, key, value, masks[mask])
    with PartOfBatch():
        kept = [
            functional.scaled_dot_product_attention(query, key, value, masks[mask], dropout_p=p) for p in (0.0, 1e-9)
        ]
        dropped = functional.scaled_dot_product_attention(query, key, value, masks[mask], dropout_p=0.5)
    for output in kept:
        torch.testing.assert_close(output, exact)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.1)
    assert float(dropped.std()) > 0.1


def test_queries_that_may_look_at_nothing_see_zeros():
    query = torch.ones(1, 1, 3, 4)
    mask = torch.tensor([[True, False, False], [False, False, False], [True, True, True]])
    for masked in (mask, torch.zeros(3, 3).masked_fill(~mask, -torch.inf)):
        with PartOfBatch():
            output = functional.scaled_dot_product_attention(query, query, query, masked, dropout_p=1e-9)
        expected = functional.scaled_dot_product_attention(query, query, query, masked)
        torch.testing.assert_close(output, expected)
        assert output[0, 0, 1].tolist() == [0.0] * 4


def test_parts_that_do_different_things_are_an_error_and_not_a_wait(images):
    layer = nn.BatchNorm2d(4)

    def run(part):
        for _ in range(1 + (part.start == 0)):  # one part does more than the others
            layer(images[part])

    with pytest.raises(PartsDisagreeError, match="different places"):
        in_parts(run, PARTS)


@pytest.fixture
def lanes(torch_threads):
    torch_threads(2)
    with Lanes() as lanes:
        yield lanes


@pytest.mark.parametrize("failing", [0, 2])
def test_error_of_one_part_frees_the_others_and_comes_out(lanes, failing, images):
    network = nn.BatchNorm2d(4).train()

    def fail(copied, part):
        if part == PARTS[failing]:
            raise MemoryError("no room")
        return copied(images[part])

    with pytest.raises(MemoryError, match="no room"):
        list(lanes.map_parts(network, fail, PARTS, Splitting(True, meets=True), at_once=1))


def test_whoever_stops_in_the_middle_leaves_nobody_waiting(lanes, images):
    network = make_network().train()
    parts = lanes.map_parts(
        network,
        lambda copied, part: copied(images[part, :3]).detach(),
        PARTS,
        Splitting(True, draws=True, meets=True),
        at_once=1,
    )
    next(parts)
    parts.close()
    assert list(lanes.map(network, lambda copied, item: item, range(3))) == [0, 1, 2]


def test_parts_draw_from_seeds_of_torchs_generator(lanes):
    ones = torch.ones(12, 50)
    layer, drawing = nn.Dropout(0.5), Splitting(True, draws=True)

    def run(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.cat(list(lanes.map_parts(layer, lambda copied, part: copied(ones[part]), PARTS, drawing, 3)))

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    rows = run(0)
    assert not torch.equal(rows[0], rows[3])
