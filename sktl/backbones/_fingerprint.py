"""Names for networks that stay the same across processes: a hash of structure and state."""

import hashlib
import json
from collections.abc import Iterable

import torch
from torch import nn


def fingerprint(module: nn.Module, *context: object) -> str:
    """Hash a network's structure and state.

    ``joblib.hash`` of a module differs in every process, so it cannot be a key; this can.

    Parameters
    ----------
    module : nn.Module
        The network.
    *context : object
        JSON-able facts that belong to the identity of what is computed (a data config, say).

    Returns
    -------
    digest : str
        64 hexadecimal digits (SHA-256).
    """
    digest = hashlib.sha256(json.dumps(context, sort_keys=True, default=list).encode())
    for line in _structure(module):
        digest.update(line.encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _structure(module: nn.Module) -> Iterable[str]:
    """Yield one line per submodule: its place, its class, and the plain settings that change what it computes."""
    for name, part in module.named_modules():
        settings = sorted(
            (key, repr(value))
            for key, value in vars(part).items()
            if not key.startswith("_") and key != "training" and isinstance(value, (bool, int, float, str, tuple))
        )
        yield f"{name}|{type(part).__module__}.{type(part).__qualname__}|{settings}\n"


def _bytes(tensor: torch.Tensor) -> bytes | memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b""
