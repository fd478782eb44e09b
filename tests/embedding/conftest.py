"""Small stand-ins for what the embedding room is given: rows, and a view of a network."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from sktl.embedding import clear_cache
from sktl.inputs import RowError

SIZE = 32
DATA_CONFIG = {"input_size": (3, SIZE, SIZE), "crop_pct": 1.0, "mean": (0.5, 0.4, 0.45), "std": (0.2, 0.25, 0.3)}


class Block(nn.Module):
    """A residual block with an activation after the sum, as in a ResNet."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.Hardswish()

    def forward(self, x):
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        out += x
        return self.act2(out)


class Network(nn.Module):
    """Convolutions, BatchNorm, residual sums and pooling in 10,000 weights."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.SiLU())
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 24)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@dataclass
class View:
    module: nn.Module
    key: str = "aa"
    width: int = 24
    data_config: dict = field(default_factory=lambda: dict(DATA_CONFIG))


class ArrayRow:
    def __init__(self, pixels, calls):
        self._pixels = pixels
        self._calls = calls

    @property
    def digest(self):
        return hashlib.sha256(np.ascontiguousarray(self._pixels)).digest()

    def pixels(self):
        self._calls.append("pixels")
        return self._pixels


class BadPixelsRow(ArrayRow):
    def pixels(self):
        raise RowError("truncated")


class ArrayRows:
    """Rows over a uint8 array, some of which cannot be decoded, some not even read."""

    def __init__(self, images, undecodable=(), unreadable=()):
        self.images, self.undecodable, self.unreadable = images, set(undecodable), set(unreadable)
        self.calls = []

    def __len__(self):
        return len(self.images)

    def label(self, i):
        return f"row {i}"

    def position(self, i):
        return i

    def __getitem__(self, i):
        if i in self.unreadable:
            raise RowError("no such file")
        return (BadPixelsRow if i in self.undecodable else ArrayRow)(self.images[i], self.calls)


@pytest.fixture(autouse=True)
def _fresh_runners():
    """Views of different tests have the same key."""
    clear_cache()


@pytest.fixture(scope="session")
def network():
    """A small network with random weights and lively BatchNorm statistics."""
    generator = torch.Generator().manual_seed(0)
    module = Network()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.data = 0.3 * torch.randn(layer.num_features, generator=generator)
            layer.running_var.data = 0.5 + torch.rand(layer.num_features, generator=generator)
    return module.eval().requires_grad_(False)


@pytest.fixture
def view(network):
    """A view of the small network."""
    return View(network)


@pytest.fixture(scope="session")
def images():
    """Fifty pictures of noise in the size of the network."""
    return np.random.default_rng(0).integers(0, 256, (50, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def make_view():
    """The class of views."""
    return View


@pytest.fixture
def make_rows():
    """The class of rows."""
    return ArrayRows


@pytest.fixture(scope="session")
def expected(network, images):
    """What a plain float32 loop gives for the pictures, one at a time."""
    mean, std = (torch.tensor(DATA_CONFIG[name]) for name in ("mean", "std"))
    with torch.inference_mode():
        rows = [network(((torch.from_numpy(image) / 255 - mean) / std).permute(2, 0, 1)[None]) for image in images]
    return torch.cat(rows).numpy()
