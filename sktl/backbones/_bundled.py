"""The backbones that ship inside the package."""

import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

import safetensors.torch
import torch

from sktl.exceptions import BackboneError

BUNDLED = {"sktl/tiny": "tiny-1"}


@cache
def bundled_card(name: str) -> dict[str, Any]:
    """Return what is known of a bundled backbone: architecture, data config, width, SHA-256 of its weights.

    Parameters
    ----------
    name : str
        ``"sktl/tiny"``.
    """
    return json.loads(_resource(f"{BUNDLED[name]}.json").read_text(encoding="utf-8"))


def bundled_state(name: str) -> dict[str, torch.Tensor]:
    """Read a bundled backbone's weights as float32, after checking their hash.

    Parameters
    ----------
    name : str
        ``"sktl/tiny"``.

    Raises
    ------
    BackboneError
        If the file is not the one that was shipped.
    """
    resource = _resource(f"{BUNDLED[name]}.safetensors")
    data = resource.read_bytes()
    found, expected = hashlib.sha256(data).hexdigest(), bundled_card(name)["sha256"]
    if found != expected:
        raise BackboneError(
            f"The weights of {name!r} in {str(resource)!r} are damaged (SHA-256 {found[:12]}..., expected "
            f"{expected[:12]}...). Install sktl again."
        )
    state = safetensors.torch.load(data)
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _resource(filename: str):
    return files("sktl.backbones.bundled") / filename
