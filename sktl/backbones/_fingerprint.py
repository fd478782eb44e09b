"""Names for networks that stay the same across processes: a hash of structure and state."""

import hashlib
import json
from collections.abc import Iterable
from functools import partial
from types import BuiltinFunctionType, FunctionType

import torch
from torch import nn
from torch.nn.parameter import is_lazy

# torch's own bookkeeping, and timm's notes on where a network comes from.
_NOT_SETTINGS = {*vars(nn.Module()), "pretrained_cfg", "default_cfg"}


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
    for name, tensor in {**module.state_dict(), **dict(module.named_buffers())}.items():
        if is_lazy(tensor):  # has neither shape nor values before the module is called
            digest.update(f"{name}:{type(tensor).__name__}".encode())
            continue
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _structure(module: nn.Module) -> Iterable[str]:
    """Yield one line per submodule: its place, its class, and the settings that change what it computes."""
    for name, part in module.named_modules():
        settings = sorted(
            (key, setting)
            for key, value in vars(part).items()
            if key not in _NOT_SETTINGS and (setting := _describe(value)) is not None
        )
        yield f"{name}|{_describe(type(part))}|{_code(type(part))}|{settings}\n"


def _describe(value: object) -> str | None:
    """Write down a setting the same way in every process; None if it is of a kind that cannot be."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype, torch.device)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, map(_describe, value)))}]"
    if isinstance(value, (dict, set, frozenset)):
        items = value.items() if isinstance(value, dict) else value
        return f"{{{', '.join(sorted(map(str, map(_describe, items))))}}}"
    if isinstance(value, partial):
        return f"partial{_describe((value.func, value.args, value.keywords))}"
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return f"{value.__module__}.{value.__qualname__}{_code(value)}"
    return None


def _code(value: object) -> str:
    """Tell apart what has the same name: lambdas, and what a notebook defines anew."""
    function = value.forward if isinstance(value, type) and hasattr(value, "forward") else value
    is_named = value.__module__ != "__main__" and "<" not in value.__qualname__
    if is_named or not isinstance(function, FunctionType):
        return ""
    code = function.__code__
    constants = [constant for constant in code.co_consts if isinstance(constant, (int, float, str))]
    return f"{code.co_code.hex()}{code.co_names}{constants}"


def _bytes(tensor: torch.Tensor) -> bytes | memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b""
