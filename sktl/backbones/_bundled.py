"""The backbones that ship inside the package."""

import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

import safetensors.torch
import torch

from sktl.exceptions import BackboneError

BUNDLED = {"sktl/tiny": "tiny-3", **{f"sktl/tiny-{version}": f"tiny-{version}" for version in (1, 2, 3)}}
"""Files by name; a name without a version means the newest."""


def versioned_name(name: Any) -> Any:
    """Return the name that will mean the same weights in every later sktl; other names are left as they are.

    Parameters
    ----------
    name : object
        ``"sktl/tiny"`` becomes ``"sktl/tiny-3"``, its newest version.
    """
    return f"sktl/{BUNDLED[name]}" if isinstance(name, str) and name in BUNDLED else name


def name_meant_once(name: str) -> str:
    """Return the versioned name that a reference means: those without a version are from the time of the first."""
    return f"{name}-1" if f"{name}-1" in BUNDLED else name


@cache
def bundled_card(name: str) -> dict[str, Any]:
    """Return what is known of a bundled backbone: architecture, data config, width, SHA-256 of its weights.

    Parameters
    ----------
    name : str
        A key of ``BUNDLED``.
    """
    return json.loads(_resource(f"{BUNDLED[name]}.json").read_text(encoding="utf-8"))


def bundled_state(name: str) -> dict[str, torch.Tensor]:
    """Read a bundled backbone's weights as float32, after checking their hash.

    Parameters
    ----------
    name : str
        A key of ``BUNDLED``.

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
