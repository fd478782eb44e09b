"""Fingerprints of networks of one's own: one fingerprint only for what computes the same, and the same everywhere."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from sktl import PretrainedFeatureTransformer
from sktl.backbones import fingerprint, load_backbone

SIZE = 32
IMAGES = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

# What stands for "..." makes the difference.
NETWORKS = {
    "constant that is a tuple": (
        """
        class Net(nn.Module):
            def forward(self, x):
                return nn.functional.pad(x, (0, 0, 0, ...)).mean(dim=(2, 3))
        """
    ),
    "constant of an inner function": (
        """
        class Net(nn.Module):
            def forward(self, x):
                return (lambda y: y.mean(dim=(2, 3)) * ...)(x)
        """
    ),
    "method": (
        """
        class Net(nn.Module):
            def forward(self, x):
                return self.body(x)
            def body(self, x):
                return x.mean(dim=(2, 3)) * ...
        """
    ),
    "method of a base class": (
        """
        class Base(nn.Module):
            def forward(self, x):
                return x.mean(dim=(2, 3)) * ...
        class Net(Base):
            pass
        """
    ),
    "property": (
        """
        class Net(nn.Module):
            @property
            def factor(self):
                return ...
            def forward(self, x):
                return x.mean(dim=(2, 3)) * self.factor
        """
    ),
    "attribute of the class": (
        """
        class Net(nn.Module):
            factor = ...
            def forward(self, x):
                return x.mean(dim=(2, 3)) * self.factor
        """
    ),
    "default": (
        """
        class Net(nn.Module):
            def forward(self, x, factor=...):
                return x.mean(dim=(2, 3)) * factor
        """
    ),
    "closure": (
        """
        def power(p):
            return lambda x: x.mean(dim=(2, 3)) * p
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.f = power(...)
            def forward(self, x):
                return self.f(x)
        """
    ),
    "function of the module": (
        """
        def power(x):
            return x.mean(dim=(2, 3)) * ...
        class Net(nn.Module):
            def forward(self, x):
                return power(x)
        """
    ),
    "number of the module": (
        """
        FACTOR = ...
        class Net(nn.Module):
            def forward(self, x):
                return x.mean(dim=(2, 3)) * FACTOR
        """
    ),
    "tensor": (
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = torch.full((3,), float(...))
            def forward(self, x):
                return x.mean(dim=(2, 3)) * self.w
        """
    ),
    "array": (
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = np.full(3, ...)
            def forward(self, x):
                return x.mean(dim=(2, 3)) * torch.from_numpy(self.w)
        """
    ),
    "object": (
        """
        class Config:
            def __init__(self, n):
                self.n = n
                self.itself = self
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.config = {"a": [Config(...)]}
            def forward(self, x):
                return x.mean(dim=(2, 3)) * self.config["a"][0].n
        """
    ),
    "layer in a list": (
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = [nn.PReLU(init=-...)]
            def forward(self, x):
                return self.layers[0](x - 1).mean(dim=(2, 3))
        """
    ),
    "hook": (
        """
        class Net(nn.Sequential):
            def __init__(self):
                super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten())
                self[1].register_forward_hook(lambda module, inputs, output: output * ...)
        """
    ),
    "forward of the instance": (
        """
        class Power:
            def __init__(self, p):
                self.p = p
            def __call__(self, x):
                return x.mean(dim=(2, 3)) * self.p
        def Net():
            net = nn.Flatten()
            net.forward = Power(...)
            return net
        """
    ),
    "method put on an instance": (
        """
        def forward(self, x):
            return x.mean(dim=(2, 3)) * self.factor
        def Net():
            net = nn.Flatten()
            net.forward, net.factor = forward.__get__(net), torch.tensor(...)
            return net
        """
    ),
    "graph": (
        """
        class Net(nn.Module):
            def forward(self, x):
                return x.mean(dim=(2, 3)) * ...
        Net = lambda Net=Net: torch.fx.symbolic_trace(Net())
        """
    ),
    "order of a dictionary": (
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.steps = {name: getattr(torch, name) for name in sorted(("exp", "cos"), reverse=... > 1)}
            def forward(self, x):
                x = x.mean(dim=(2, 3))
                for step in self.steps.values():
                    x = step(x)
                return x
        """
    ),
}


def network(source, value, file="one.py", n_lines=0):
    """Return a network defined as a file or a notebook would define it."""
    space = {"__name__": "own", "nn": nn, "torch": torch, "np": np}
    code = "\n" * n_lines + textwrap.dedent(source).replace("...", str(value))
    exec(compile(code, file, "exec"), space)
    return space["Net"]().eval()


def identity(module):
    return load_backbone(module, image_size=SIZE).fingerprint


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_that_compute_something_else_have_another_fingerprint(kind):
    """Else embeddings of one would be served for the other."""
    one, again, other = (network(NETWORKS[kind], value) for value in (1, 1, 2))
    with torch.inference_mode():
        assert not torch.equal(one(IMAGES), other(IMAGES))
    assert identity(one) != identity(other)
    assert identity(one) == identity(again) == identity(copy.deepcopy(one))


def test_a_class_that_is_defined_anew_is_another(rng):
    """As by a cell of a notebook that is edited and run again; the first estimator is alive."""
    X = rng.integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    first, second = (
        PretrainedFeatureTransformer(network(NETWORKS["method"], factor), image_size=SIZE).fit(X) for factor in (1, 2)
    )
    np.testing.assert_allclose(second.transform(X), 2 * first.transform(X), rtol=1e-6)


def test_fingerprint_does_not_depend_on_process_file_or_lines(tmp_path):
    source = """
        import torch
        from torch import nn
        SETTINGS = {"a", "b", "c", ("d", 1.5)}
        class Net(nn.Module):
            names = frozenset("abcdef")
            def __init__(self):
                super().__init__()
                self.w, self.names, self.own = torch.ones(3), {"x", "y", "z"}, Net
            def forward(self, x):
                assert self.names != SETTINGS and "a" in {"a", "b", "c"}
                return super().__call__ and x.mean(dim=(2, 3)) * self.w
    """
    expected = identity(network(source, 0, n_lines=7))
    (tmp_path / "own.py").write_text(textwrap.dedent(source))
    code = f"import own; from sktl.backbones import *; print(load_backbone(own.Net(), image_size={SIZE}).fingerprint)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.split() == [expected]


def test_fingerprint_does_not_depend_on_how_often_a_network_ran():
    source = """
        CALLS = []
        class Net(nn.Module):
            calls, sizes, seen = 0, [], set()
            def forward(self, x):
                Net.calls += 1
                Net.sizes.append(len(x))
                Net.seen.update((len(Net.sizes), image.sum().item()) for image in x)
                CALLS.append(1)
                return x.mean(dim=(2, 3))
    """
    net = network(source, 0)
    before = identity(net)
    for _ in range(50):
        net(IMAGES)
    assert net.calls >= 50
    assert identity(net) == before


class Unwritable:
    """Can be copied, and neither pickled nor compared."""

    def __deepcopy__(self, memo):
        return Unwritable()

    def __reduce__(self):
        raise TypeError


def test_what_cannot_be_written_down_is_like_nothing_else():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.__class__ = type("Net", (nn.Sequential,), {})
    net.setting = Unwritable()
    assert fingerprint(net) == fingerprint(net)
    assert identity(net) != identity(net)


def test_a_lock_is_no_setting():
    net = network(NETWORKS["tensor"], 1)
    net.lock = threading.Lock()
    expected = fingerprint(net)
    net.lock = threading.Lock()
    assert fingerprint(net) == expected


def test_a_pickled_backbone_whose_class_was_edited_since_is_another(monkeypatch):
    """Else what it computes now would be stored as what it computed then."""
    module = ModuleType("own")
    monkeypatch.setitem(sys.modules, "own", module)
    module.Net = type(network(NETWORKS["tensor"], 1))
    backbone = load_backbone(module.Net(), image_size=SIZE)
    pickled, first = pickle.dumps(backbone), backbone.fingerprint
    restored = pickle.loads(pickled)
    assert fingerprint(restored.module, restored.data_config) == restored.fingerprint == first
    del backbone, restored
    module.Net = type(network(NETWORKS["tensor"].replace("* self.w", "+ self.w"), 1))
    restored = pickle.loads(pickled)
    assert fingerprint(restored.module, restored.data_config) == restored.fingerprint == restored.view.key != first
