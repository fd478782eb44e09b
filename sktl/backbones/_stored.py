"""Weights that are kept apart from what refers to them, as in a file without pickle."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from sktl.exceptions import DamagedFileError


class WeightsShelf:
    """Where the weights of networks are put while an estimator is saved, and taken from while it is loaded.

    Parameters
    ----------
    read : callable, default=None
        Takes a key, returns the bytes that were written under it; not needed for writing.
    weights : path-like, default=None
        The file with the weights that a model may refer to.
    is_trusted : callable, default=None
        Takes the name of a network that is to be looked up elsewhere, returns whether that place is trusted.

    Attributes
    ----------
    blobs : dict of str to bytes
        What was written, in safetensors' format.
    """

    def __init__(
        self,
        read: Callable[[str], bytes] | None = None,
        weights: str | os.PathLike | None = None,
        is_trusted: Callable[[str], bool] | None = None,
    ):
        self.blobs: dict[str, bytes] = {}
        self.weights = weights
        self.is_trusted = is_trusted
        self._read = read
        self._keys: dict[str, str] = {}

    def put(self, identity: str, tensors: Callable[[], Mapping[str, torch.Tensor]]) -> str:
        """Keep some tensors, and return the key to find them by; the same identity is kept once."""
        if identity not in self._keys:
            key = str(len(self._keys))
            self.blobs[key] = safetensors.torch.save(dict(tensors()))
            self._keys[identity] = key
        return self._keys[identity]

    def get(self, key: str) -> dict[str, torch.Tensor]:
        """Return the tensors that are kept under a key."""
        data = self._read(key)
        try:
            return safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(f"its weights {key!r} cannot be read: {error}") from error


_shelf: ContextVar[WeightsShelf | None] = ContextVar("sktl_weights_shelf", default=None)


@contextmanager
def weights_on(shelf: WeightsShelf) -> Iterator[WeightsShelf]:
    """Let the states of backbones refer to weights on a shelf, in this thread, while the block runs."""
    token = _shelf.set(shelf)
    try:
        yield shelf
    finally:
        _shelf.reset(token)


def current_shelf() -> WeightsShelf | None:
    """Return the shelf of the enclosing ``weights_on`` block, or None where states hold their weights themselves."""
    return _shelf.get()


def pack_tensors(tensors: Mapping[str, torch.Tensor], identity: str | None = None) -> np.ndarray | str:
    """Copy tensors off their device, into the bytes of a safetensors file, or onto the shelf if there is one.

    Parameters
    ----------
    tensors : dict of str to tensor
        Left as they are.
    identity : str, default=None
        Equal for equal tensors, so that a shelf keeps them once.

    Returns
    -------
    packed : ndarray of uint8, which joblib can map into memory, or str, the key on the shelf
    """
    shelf = current_shelf()
    if shelf is not None:
        return shelf.put(identity or f"object {id(tensors)}", lambda: _off_device(tensors))
    return np.frombuffer(safetensors.torch.save(_off_device(tensors)), np.uint8)


def unpack_tensors(packed: np.ndarray | bytes | str) -> dict[str, torch.Tensor]:
    """Return packed tensors, on the CPU."""
    shelf = current_shelf()
    if shelf is not None:
        return shelf.get(packed)
    if isinstance(packed, np.ndarray) and packed.flags.writeable:
        return _views_of(packed)
    return safetensors.torch.load(bytes(packed))


def _views_of(packed: np.ndarray) -> dict[str, torch.Tensor]:
    """Return tensors that lie in the bytes of a safetensors file; the library would copy them twice."""
    start = 8 + int.from_bytes(packed[:8].tobytes(), "little")
    entries = json.loads(packed[8:start].tobytes())
    entries.pop("__metadata__", None)
    tensors = {}
    for name, entry in entries.items():
        first, last = entry["data_offsets"]
        dtype = getattr(torch, _DTYPES.get(entry["dtype"], ""), None)
        if dtype is None:  # a type that is newer than this list
            return safetensors.torch.load(packed.tobytes())
        if first == last:
            tensors[name] = torch.empty(entry["shape"], dtype=dtype)
        else:
            tensors[name] = torch.from_numpy(packed[start + first : start + last]).view(dtype).view(entry["shape"])
    return tensors


_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def _off_device(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy tensors to the CPU, contiguous, and no memory shared between them, as safetensors wants it."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


_TORCHS_OWN = frozenset(vars(nn.Module()))


def describe_module(module: nn.Module) -> dict:
    """Return a network's structure as plain data: classes, settings, shapes; what is shared stays shared."""
    return _describe(module, {})


def _describe(module: nn.Module, seen: dict[int, dict]) -> dict:
    if id(module) not in seen:
        persistent = {name: buffer for name, buffer in module._buffers.items() if _is_persistent(module, name)}
        seen[id(module)] = {
            "class": type(module),
            "training": module.training,
            "settings": {name: value for name, value in vars(module).items() if name not in _TORCHS_OWN},
            "parameters": {name: _describe_tensor(value, seen) for name, value in module._parameters.items()},
            "buffers": {name: _describe_tensor(value, seen) for name, value in persistent.items()},
            "constants": {
                name: None if value is None else value.detach().cpu().numpy()
                for name, value in module._buffers.items()
                if name not in persistent
            },
            "modules": {
                name: None if child is None else _describe(child, seen) for name, child in module._modules.items()
            },
        }
    return seen[id(module)]


def _is_persistent(module: nn.Module, buffer_name: str) -> bool:
    return buffer_name not in module._non_persistent_buffers_set


def _describe_tensor(tensor: torch.Tensor | None, seen: dict[int, dict]) -> dict | None:
    if tensor is None:
        return None
    if id(tensor) not in seen:
        dtype = str(tensor.dtype).removeprefix("torch.")
        seen[id(tensor)] = {"shape": list(tensor.shape), "dtype": dtype, "requires_grad": tensor.requires_grad}
    return seen[id(tensor)]


def module_from_description(description: dict) -> nn.Module:
    """Build a network from its description, with zero weights; no constructor runs."""
    return _from_description(description, {})


def _from_description(description: dict, built: dict[int, object]) -> nn.Module:
    if id(description) not in built:
        cls = description["class"]
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise DamagedFileError(f"{cls!r} is no class of networks.")
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        vars(module).update(description["settings"], training=bool(description["training"]))
        for name, each in description["parameters"].items():
            module.register_parameter(name, _build_once(each, built, _build_parameter))
        for name, each in description["buffers"].items():
            module.register_buffer(name, _build_once(each, built, _zeros))
        for name, value in description["constants"].items():
            module.register_buffer(name, None if value is None else torch.from_numpy(value), persistent=False)
        for name, each in description["modules"].items():
            module.add_module(name, None if each is None else _from_description(each, built))
        built[id(description)] = module
    return built[id(description)]


def _build_once(description: dict | None, built: dict[int, object], build: Callable) -> object:
    if description is None:
        return None
    if id(description) not in built:
        built[id(description)] = build(description)
    return built[id(description)]


def _zeros(description: dict) -> torch.Tensor:
    dtype = getattr(torch, description["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise DamagedFileError(f"{description['dtype']!r} is no type of numbers.")
    return torch.zeros(description["shape"], dtype=dtype)


def _build_parameter(description: dict) -> nn.Parameter:
    return nn.Parameter(_zeros(description), requires_grad=bool(description["requires_grad"]))
