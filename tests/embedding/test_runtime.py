"""Prepared networks: the same numbers, faster, and never at the cost of the network that is shared."""

import copy
import gc
import os
import shutil
import sys
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from sktl.embedding import clear_cache, embed
from sktl.embedding._fusion import fuse, is_fusable, trace
from sktl.embedding._threads import cpu_share
from sktl.embedding.runtime import Runner, RunnerCache, get_runner, resolve_runtime
from sktl.exceptions import MissingExtraError, PrecisionWarning

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.45), (0.2, 0.25, 0.3)


@pytest.fixture
def example():
    return torch.randn((4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)


def operators(program):
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_fused_network_computes_the_same(network, example, dtype, tolerance):
    program = fuse(trace(copy.deepcopy(network), example), dtype)
    with torch.inference_mode():
        torch.testing.assert_close(program(example.to(dtype)).float(), network(example), rtol=0, atol=tolerance)
    assert not any("batch_norm" in name for name in operators(program))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
def test_activations_and_sums_join_the_convolution(network, example):
    names = operators(fuse(trace(copy.deepcopy(network), example), torch.float32))
    assert sum("_convolution_pointwise" in name for name in names) == 5
    assert not any(word in name for name in names for word in ("relu", "silu", "add_", "aten.convolution"))


def test_fused_network_has_weights_of_its_own(network, example):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fuse(trace(copy.deepcopy(network), example), torch.bfloat16)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_one_trace_gives_programs_of_several_precisions(network, example):
    traced = trace(copy.deepcopy(network), example)
    first = fuse(traced, torch.float32)
    fuse(traced, torch.bfloat16)
    with torch.inference_mode():
        torch.testing.assert_close(fuse(traced, torch.float32)(example), first(example), rtol=0, atol=0)


class Branching(nn.Module):
    """Uses a convolution's output twice, so that BatchNorm must not be folded into it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.bn.running_mean.fill_(0.5)

    def forward(self, x):
        out = self.conv(x)
        return (torch.relu(self.bn(out)) + out).mean((2, 3))


def test_a_convolution_that_is_used_twice_is_left_alone(example):
    module = Branching().eval()
    with torch.inference_mode():
        torch.testing.assert_close(fuse(trace(module, example), torch.float32)(example), module(example))


def test_only_networks_with_batch_norm_are_fused(network):
    assert is_fusable(network)
    assert not is_fusable(nn.Linear(2, 2))


class Dynamic(nn.Module):
    """Cannot be traced: what it does depends on the values."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.bn(x)
        return x.mean((2, 3)) if x.sum().item() > 0 else x.amax((2, 3))


def test_a_network_that_cannot_be_traced_runs_as_it_is(make_rows, make_view, images):
    result = embed(
        make_rows(images[:8]), make_view(Dynamic().eval(), width=3), dtype="float32", device="cpu", runtime="torch"
    )
    assert np.isfinite(result).all()


class Touchy(nn.Module):
    """Gives something else in any precision but float32."""

    def forward(self, x):
        means = x.float().mean((2, 3))
        return means if x.dtype == torch.float32 else means.flip(1).square()


def test_a_precision_that_changes_embeddings_is_replaced(make_rows, make_view, images):
    policy = {"device": "cpu", "runtime": "torch"}
    expected = embed(make_rows(images), make_view(Touchy(), "other", 3), dtype="float32", **policy)
    view = make_view(Touchy(), width=3)
    with pytest.warns(
        PrecisionWarning, match=r"computed by torch in float32, because runtime='torch' with dtype='bfloat16'"
    ):
        result = embed(make_rows(images), view, dtype="bfloat16", **policy)
    np.testing.assert_array_equal(result, expected)
    embed(make_rows(images), view, dtype="bfloat16", **policy)  # it is said once


def test_compile_is_asked_for_one_shape_and_frozen_weights(make_rows, view, images, expected, monkeypatch):
    asked = []

    def fake(module, **options):
        asked.append(options)
        return module

    monkeypatch.setattr(torch, "compile", fake)
    result = embed(make_rows(images), view, device="cpu", runtime="compile", dtype="float32")
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)
    assert asked == [{"dynamic": False, "options": {"freezing": True, "cpp.threads": cpu_share().threads}}]


@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
def test_compiled(make_rows, make_view, images):
    view = make_view(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), width=3)
    result = embed(make_rows(images), view, device="cpu", runtime="compile", dtype="float32")
    expected = embed(make_rows(images), view, device="cpu", runtime="torch", dtype="float32")
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_openvino(make_rows, view, images, expected, dtype):
    pytest.importorskip("openvino")
    result = embed(make_rows(images), view, device="cpu", runtime="openvino", dtype=dtype)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 if dtype == "float32" else 0.1)
    again = embed(make_rows(images[::-1]), view, device="cpu", runtime="openvino", dtype=dtype)
    np.testing.assert_array_equal(again[::-1], result)


def test_openvino_that_fails_is_replaced(make_rows, view, images, expected, monkeypatch):
    def convert_model(exported):
        raise RuntimeError("no conversion rule\nand a long story")

    fake = types.SimpleNamespace(convert_model=convert_model, Core=lambda: None, __spec__=None)
    monkeypatch.setitem(sys.modules, "openvino", fake)
    with pytest.warns(PrecisionWarning, match="runtime='openvino' .* fails with RuntimeError: no conversion rule.$"):
        result = embed(make_rows(images), view, device="cpu", runtime="openvino", dtype="float32")
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_openvino_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"sktl\[openvino\]"):
        resolve_runtime("openvino", CPU)


@pytest.mark.parametrize(
    ("installed", "device", "expected"), [(1, "cpu", "openvino"), (0, "cpu", "torch"), (1, "cuda", "torch")]
)
def test_auto_runtime(monkeypatch, installed, device, expected):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    assert resolve_runtime("auto", torch.device(device)) == expected


def test_runners_are_kept_and_dropped(make_view, network):
    cache, share = RunnerCache(max_runners=2), cpu_share()
    views = [make_view(network, key) for key in ("aa", "bb", "cc")]
    first = cache.get(views[0], CPU, torch.float32, "torch", MEAN, STD, share)
    assert cache.get(make_view(network, "aa"), CPU, torch.float32, "torch", MEAN, STD, share) is first
    for other in views[1:]:
        cache.get(other, CPU, torch.float32, "torch", MEAN, STD, share)
    assert cache.get(views[0], CPU, torch.float32, "torch", MEAN, STD, share) is not first


def test_a_network_that_nobody_has_is_not_kept(make_view):
    view = make_view(nn.Flatten(), "aa")
    module, settings = weakref.ref(view.module), (CPU, torch.float32, "torch", MEAN, STD, cpu_share())
    first = weakref.ref(get_runner(view, *settings))
    del view
    gc.collect()
    assert module() is None
    get_runner(make_view(nn.Flatten(), "bb"), *settings)
    assert first() is None


def test_a_runner_goes_on_with_the_view_that_is_left(make_view, network):
    first, second = make_view(network), make_view(network)
    settings = (CPU, torch.float32, "torch", MEAN, STD, cpu_share())
    get_runner(first, *settings)
    runner = get_runner(second, *settings)
    del first
    gc.collect()
    assert runner(torch.zeros((2, 32, 32, 3), dtype=torch.uint8)).shape == (2, 24)


class Clip(nn.Module):
    """A network with a weight of five axes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 24, (1, 3, 3))

    def forward(self, images):
        return self.conv(images.unsqueeze(2)).mean(dim=(2, 3, 4))


def test_a_network_with_weights_of_five_axes(make_rows, make_view, images):
    view = make_view(Clip().eval())
    result = embed(make_rows(images), view, device="cpu", runtime="torch", dtype="float32")
    assert result.shape == (len(images), 24)
    assert np.isfinite(result).all()


def test_clear_cache(view):
    share = cpu_share()
    first = get_runner(view, CPU, torch.float32, "torch", MEAN, STD, share)
    clear_cache()
    assert get_runner(view, CPU, torch.float32, "torch", MEAN, STD, share) is not first


def test_runner_normalises(view, network, images):
    runner = Runner(view, CPU, torch.float32, "torch", MEAN, STD, cpu_share())
    pixels = torch.from_numpy(images[:4])
    normalised = ((pixels / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    torch.testing.assert_close(runner(pixels), runner(normalised), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_embeds(make_rows, view, images):
    expected = embed(make_rows(images), view, device="cpu", runtime="torch")
    pid = os.fork()
    if pid == 0:
        result = embed(make_rows(images), view, device="cpu", runtime="torch")
        os._exit(0 if np.array_equal(result, expected) else 1)
    assert os.waitpid(pid, 0)[1] == 0
