"""A network taken down: called again, the program does what the network does, to any input and any number of times."""

import copy
import threading

import pytest
import torch
from torch import nn

from sktl.embedding._fusion import fuse, trace
from sktl.embedding._tape import take_down


class Windows(nn.Module):
    """Attention on windows, as in hybrids of convolutions and transformers, with a weight that is seen in parts."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 12, 4, stride=4), nn.BatchNorm2d(12)
        self.scale = nn.Parameter(torch.full((12,), 0.5))
        self.norm.running_mean.uniform_(-1, 1)

    def forward(self, x):
        x = self.norm(self.conv(x)) * self.scale.view(1, -1, 1, 1)
        query, key, value = x.flatten(2).transpose(1, 2).chunk(3, dim=2)
        return nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(1)


class Writing(nn.Module):
    """Makes a tensor and writes into it, beside constants that are no buffers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.weights = torch.arange(4.0)

    def forward(self, x):
        x = self.norm(self.conv(x)).mean((2, 3))
        sums = torch.zeros(len(x), 4, device=x.device)
        sums[:, :2] += x[:, :2]
        sums += torch.tensor([1.0, 2.0, 3.0, 4.0]) + torch.arange(4) * self.weights
        return torch.cat([sums, x.topk(2, dim=1).values], dim=1)


class Tied(nn.Module):
    """Uses a weight twice."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.other.weight = self.one.weight

    def forward(self, x):
        return self.norm(self.other(self.one(x))).amax((2, 3))


@torch.library.custom_op("sktl_tests::laid_out_anew", mutates_args=())
def laid_out_anew(x: torch.Tensor) -> torch.Tensor:
    return x.clone(memory_format=torch.channels_last)


@laid_out_anew.register_fake
def _(x):
    return torch.empty(x.shape, device=x.device)


class Elsewhere(nn.Module):
    """Has values in another order in memory than is said of them without values."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return laid_out_anew(self.norm(self.conv(x))).reshape(len(x), 2, -1).mean(2)


@pytest.fixture
def inputs():
    images = torch.randn((2, 4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return [each.to(memory_format=torch.channels_last) for each in images]


@pytest.mark.parametrize("make", [Windows, Writing, Tied, Elsewhere])
def test_program_does_what_the_network_does(make, inputs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make().eval()
    traced = trace(copy.deepcopy(module), torch.zeros_like(inputs[0]))
    program = fuse(traced, torch.float32)
    with torch.inference_mode():
        for images in [*inputs, inputs[0]]:
            torch.testing.assert_close(program(images), module(images))
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)


def test_attention_is_left_to_choose_its_way_where_it_runs(inputs):
    program = take_down(Windows().eval(), inputs[0])
    assert torch.ops.aten.scaled_dot_product_attention.default in {node.target for node in program.graph.nodes}


def test_network_that_asks_for_values_is_an_error(inputs):
    class Asks(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    with pytest.raises(RuntimeError, match="meta"):
        take_down(Asks(), inputs[0])


def test_other_threads_are_not_taken_down(inputs):
    there = []

    class Meets(nn.Module):
        def forward(self, x):
            thread = threading.Thread(target=lambda: there.append(torch.ones(2).cos()))
            thread.start()
            thread.join()
            return x.sin()

    program = take_down(Meets(), inputs[0])
    assert there[0].device.type == "cpu"
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == ["aten.sin.default"]
