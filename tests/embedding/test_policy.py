"""Which device and which precision "auto" means, and what is refused."""

import pytest
import torch

from sktl.embedding import policy, resolve_device, resolve_dtype


@pytest.fixture
def machine(monkeypatch):
    """A function that makes torch report other hardware."""

    def pretend(cuda=0, mps=False, capability=(8, 0), cpu=()):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(cpu, True), raising=False)

    return pretend


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [({"cuda": 1, "mps": True}, "cuda"), ({"mps": True}, "mps"), ({}, "cpu")],
)
def test_auto_takes_the_best_device(machine, hardware, expected):
    machine(**hardware)
    assert resolve_device("auto") == torch.device(expected)


@pytest.mark.parametrize("device", ["cuda:1", torch.device("cuda", 1), "cpu", torch.device("cpu")])
def test_named_device(machine, device):
    machine(cuda=2)
    assert resolve_device(device) == torch.device(device)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (
            "cuda",
            r"The 'device' parameter must be a device that is available \(torch sees 0 CUDA devices\), got 'cuda'",
        ),
        ("mps", "torch cannot use MPS on this machine.*got 'mps'"),
        ("xpu", "must be a device that is available, got 'xpu'"),
        ("meta", "must be a device that computes, got 'meta'"),
        ("gpu", "must be 'auto', a torch.device or a string that names one.*got 'gpu'"),
        (None, "got None"),
    ],
)
def test_device_that_is_not_there(machine, device, message):
    machine()
    with pytest.raises(ValueError, match=message):
        resolve_device(device)


def test_cuda_device_beyond_the_last(machine):
    machine(cuda=1)
    with pytest.raises(ValueError, match=r"torch sees 1 CUDA device\), got 'cuda:1'"):
        resolve_device("cuda:1")


@pytest.mark.parametrize(
    ("hardware", "device", "expected"),
    [
        ({"cuda": 1, "capability": (8, 0)}, "cuda", torch.bfloat16),
        ({"cuda": 1, "capability": (7, 5)}, "cuda", torch.float32),
        ({"mps": True}, "mps", torch.float32),
        ({"cpu": ["avx2", "amx_bf16"]}, "cpu", torch.bfloat16),
        ({"cpu": ["avx512_bf16"]}, "cpu", torch.bfloat16),
        ({"cpu": ["neon", "bf16"]}, "cpu", torch.bfloat16),
        ({"cpu": ["avx2", "avx512_f"]}, "cpu", torch.float32),
    ],
)
def test_auto_takes_bfloat16_where_it_is_native(machine, hardware, device, expected):
    machine(**hardware)
    assert resolve_dtype("auto", torch.device(device)) == expected


@pytest.mark.parametrize(("flag", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_older_torch_has_single_probes(monkeypatch, flag, expected):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: flag, raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert resolve_dtype("auto", "cpu") == expected


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_named_dtype(name):
    assert resolve_dtype(name, "cpu") == resolve_dtype(getattr(torch, name), "cpu") == getattr(torch, name)


@pytest.mark.parametrize("dtype", ["float64", torch.float64, torch.int8, 32, None])
def test_unknown_dtype(dtype):
    with pytest.raises(
        ValueError, match="The 'dtype' parameter must be 'auto', 'float32', 'bfloat16' or 'float16', got"
    ):
        resolve_dtype(dtype, "cpu")


def test_this_machine_is_understood():
    assert resolve_device("auto").type in ("cuda", "mps", "cpu")
    assert isinstance(policy._cpu_has_bfloat16(), bool)
