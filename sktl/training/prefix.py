"""The frozen part of a network that comes before all that is trained: found by looking, and run once per image."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import nn

from sktl._random import private_torch_rng
from sktl.training.network import Network
from sktl.training.parts import random_state

_MAX_TRIES = 4  # cuts that are tried from the back before the network is run whole


class Call(NamedTuple):
    """One call of a module in a pass through the backbone.

    Attributes
    ----------
    name : str
        Of the module in the backbone.
    shape : tuple of int
        Of its output for one image.
    dtype : torch.dtype
        Of its output.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class FrozenPrefix:
    """The first calls of a pass through a backbone, up to a cut; their results never change while the rest trains.

    A pass from the cut on is the network's own ``forward``, in which the modules before the cut are not run: they give
    placeholders, and the last one gives the activations that were kept.

    Parameters
    ----------
    calls : list of Call
        In order; the last one is the cut.
    input_shape : tuple of int
        Of the network's normalised input for one image.
    """

    def __init__(self, calls: list[Call], input_shape: tuple[int, ...]):
        self.calls = calls
        self.input_shape = input_shape

    @property
    def cut(self) -> Call:
        """The call whose output is kept."""
        return self.calls[-1]

    def run(self, backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Compute the activations at the cut, and nothing after them.

        Parameters
        ----------
        backbone : nn.Module
            The one that the calls were found in, or a copy.
        images : tensor of shape (n, 3, height, width)
            Normalised.

        Returns
        -------
        activations : tensor of shape (n, ...)
            Without gradients.
        """
        n_calls, found = 0, []

        def count(forward, *args, **kwargs):
            nonlocal n_calls
            n_calls += 1
            output = forward(*args, **kwargs)
            if n_calls == len(self.calls):
                found.append(output)
                raise _Enough
            return output

        with torch.no_grad(), suppress(_Enough), _replaced(backbone, self._names(), count):
            backbone(images)
        return found[0]

    def finish(self, backbone: nn.Module, forward, activations: torch.Tensor) -> torch.Tensor:
        """Run what comes after the cut.

        Parameters
        ----------
        backbone : nn.Module
            As in :meth:`run`.
        forward : callable
            A network that runs the backbone, or the backbone itself.
        activations : tensor of shape (n, ...)
            What :meth:`run` gave.

        Returns
        -------
        output : tensor
            What ``forward`` gives for the images.
        """
        calls = iter(self.calls)

        def skip(module_forward, *args, **kwargs):
            call = next(calls, None)
            if call is None:  # a module that is used again after the cut
                return module_forward(*args, **kwargs)
            return activations if call is self.cut else _placeholder(activations, call.shape, call.dtype)

        with _replaced(backbone, self._names(), skip):
            return forward(_placeholder(activations, self.input_shape, torch.float32))

    def agrees(self, backbone: nn.Module, images: torch.Tensor) -> bool:
        """Compare outputs and gradients with those of whole passes, for a few images."""
        whole = _outcome(backbone, lambda: backbone(images), images.device)
        activations = self.run(backbone, images)
        try:
            split = _outcome(backbone, lambda: self.finish(backbone, backbone, activations), images.device)
        except RuntimeError:  # what lies between the calls cannot be run on placeholders
            return False
        return all(_close(first, second) for first, second in zip(whole, split, strict=True))

    def is_same_in(self, backbone: nn.Module, other: nn.Module) -> bool:
        """Compare the weights that it uses in two backbones of one architecture."""
        names = self._names()
        return all(map(torch.equal, _used_by(names, backbone), _used_by(names, other)))

    def _names(self) -> set[str]:
        return {call.name for call in self.calls}


class Activations:
    """What a frozen prefix made of the images of a data set, so far.

    Parameters
    ----------
    values : tensor of shape (n_kept * n, ...)
        For each kept variant, one per row.
    prefix : FrozenPrefix
        What made them.
    backbone : nn.Module
        Whose weights it used.

    Attributes
    ----------
    filled : set of int
        Variants that are there.
    """

    def __init__(self, values: torch.Tensor, prefix: FrozenPrefix, backbone: nn.Module):
        self.values = values
        self.prefix = prefix
        self.backbone = backbone
        self.filled: set[int] = set()

    def are_of(self, prefix: FrozenPrefix, backbone: nn.Module) -> bool:
        """Tell whether a prefix, with the weights of a backbone, would give the same."""
        return self.prefix.calls == prefix.calls and prefix.is_same_in(backbone, self.backbone)


def find_prefix(network: Network, images: torch.Tensor) -> FrozenPrefix | None:
    """Find the longest part of a network's pass that training cannot change.

    What is trained is read off ``requires_grad``; what the pass consists of is seen in one. A part counts if all its
    parameters are frozen, it keeps no statistics and draws no random numbers. The network is cut after the last module
    before anything else, and the cut is accepted if outputs and gradients are those of the whole.

    Parameters
    ----------
    network : Network
        Prepared by the strategy; left as it is.
    images : tensor of shape (n, ...)
        A few images to try the parts on, as the network takes them.

    Returns
    -------
    prefix : FrozenPrefix or None
        None if there is no such part, or the network cannot be split safely.
    """
    device = images.device
    with private_torch_rng(0, device):
        backbone = copy.deepcopy(network).train().backbone
        images = network.normalise(images)
        if not images.is_floating_point():
            return None  # tokens: what comes after the cut asks them which of them are padding
        calls = _fixed_calls(backbone, images)
        for length in range(len(calls), max(0, len(calls) - _MAX_TRIES), -1):
            prefix = FrozenPrefix(calls[:length], tuple(images.shape[1:]))
            if not any(_has_parameters(backbone.get_submodule(call.name)) for call in prefix.calls):
                return None
            if prefix.agrees(backbone, images):
                return prefix
    return None


def _used_by(names: set[str], backbone: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the parameters and buffers of some modules, and those of the modules around them, whose code calls them."""
    for name, module in backbone.named_modules():
        is_part = any(not each or f"{name}.".startswith(f"{each}.") for each in names)
        if is_part or any(not name or each.startswith(f"{name}.") for each in names):
            yield from module.parameters(recurse=False)
            yield from module.buffers(recurse=False)


class _Enough(Exception):  # noqa: N818 -- no error: the way out of a pass that has given all that is asked for
    pass


def _fixed_calls(backbone: nn.Module, images: torch.Tensor) -> list[Call]:
    """Return the calls that come before anything that training may change."""
    parts = _parts(backbone)
    names = {id(module): name for name, module in parts.items()}
    calls: list[Call] = []
    closed = False
    before = random_state(images.device)

    def record(forward, *args, **kwargs):
        nonlocal closed
        module = forward.__self__
        output = forward(*args, **kwargs)
        closed = closed or not (
            _is_fixed(module)
            and all(map(torch.equal, random_state(images.device), before))
            and isinstance(output, torch.Tensor)
            and output.is_floating_point()
            and len(output) == len(images)
        )
        if not closed:
            calls.append(Call(names[id(module)], tuple(output.shape[1:]), output.dtype))
        return output

    with torch.no_grad(), _replaced(backbone, parts, record):
        backbone(images)
    return calls


def _parts(module: nn.Module, name: str = "") -> dict[str, nn.Module]:
    """Return the modules that are frozen or trained as a whole, by name; their children are among them."""
    parameters = {parameter.requires_grad for parameter in module.parameters()}
    own = {parameter.requires_grad for parameter in module.parameters(recurse=False)}
    parts = {name: module} if len(parameters) < 2 or True in own else {}
    for child_name, child in module.named_children():
        parts.update(_parts(child, f"{name}.{child_name}" if name else child_name))
    return parts


def _is_fixed(module: nn.Module) -> bool:
    if any(parameter.requires_grad for parameter in module.parameters()):
        return False
    return not any(part.training and next(part.buffers(recurse=False), None) is not None for part in module.modules())


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


@contextmanager
def _replaced(backbone: nn.Module, names, replacement) -> Iterator[None]:
    """Let ``replacement(forward, *args)`` stand for the forward of some modules, but not inside such a call."""
    inside = False

    def replace(forward):
        def call(*args, **kwargs):
            nonlocal inside
            if inside:
                return forward(*args, **kwargs)
            inside = True
            try:
                return replacement(forward, *args, **kwargs)
            finally:
                inside = False

        return call

    modules = {id(module): module for module in (backbone.get_submodule(name) for name in names)}
    own = [(module, vars(module).get("forward")) for module in modules.values()]
    try:
        for module, _ in own:
            module.forward = replace(module.forward)
        yield
    finally:
        for module, forward in own:
            if forward is not None:
                module.forward = forward
            else:
                vars(module).pop("forward", None)


def _placeholder(like: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of NaN, which takes no memory and cannot be used unnoticed."""
    return torch.full((), torch.nan, dtype=dtype, device=like.device).expand(len(like), *shape)


def _outcome(backbone: nn.Module, forward, device: torch.device) -> list[torch.Tensor | None]:
    """Return the output and the gradients of a random sum of it, on the same random numbers at each call."""
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    with private_torch_rng(0, device):
        output = forward()
        if not trained:
            return [output]
        gradients = torch.autograd.grad((output * torch.randn_like(output)).sum(), trained, allow_unused=True)
    return [output.detach(), *gradients]


def _close(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    scale = float(first.abs().max()) if first.numel() else 1.0
    return torch.allclose(first, second, rtol=1e-3, atol=1e-4 * scale)
