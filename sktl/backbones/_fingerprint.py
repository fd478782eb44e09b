"""Names for networks that stay the same across processes: a hash of structure and state."""

import hashlib
import json
from collections.abc import Iterable

from torch import nn
from torch.nn.parameter import is_lazy

from sktl.backbones._describe import Description, is_published, own_settings, tensor_bytes


def fingerprint(module: nn.Module, *context: object) -> str:
    """Hash a network's structure and state.

    ``joblib.hash`` of a module differs in every process, so it cannot be a key; this can. Two networks have one
    fingerprint only if they compute the same: of classes and functions that are no published library's, their code
    counts too, and of what cannot be written down no two are alike.

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
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _structure(module: nn.Module) -> Iterable[str]:
    """Yield one line per submodule: its place, its class, and the settings that change what it computes."""
    parts = dict(module.named_modules())
    describe = Description({id(part): f"part {name!r}" for name, part in parts.items()})
    for name, part in parts.items():
        partly = is_published(part)
        settings = [(key, describe(value, partly=partly)) for key, value in own_settings(part).items()]
        settings = [(key, setting) for key, setting in settings if setting is not None]
        yield f"{name}|{describe(type(part))}|{describe.hooks(part)}|{settings}\n"
    yield from describe.rest()
