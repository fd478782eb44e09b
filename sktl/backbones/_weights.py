"""Weights for a timm architecture: from a hub's cache, from a file, from a state dict, or random."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sktl._random import private_torch_rng
from sktl.exceptions import BackboneError, WeightsNotFoundError

Weights = str | os.PathLike | Mapping[str, torch.Tensor] | None

_SAFE_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".tar")


def create_with_weights(architecture: str, weights: Weights, **kwargs: Any) -> tuple[nn.Module, nn.Module | None]:
    """Build a timm model without classifier, with the weights asked for.

    Parameters
    ----------
    architecture : str
        A timm model name, with its tag or source prefix.
    weights : "pretrained", path, state dict or None
        Where the weights come from; None is a random start (always the same one).
    **kwargs : dict
        Passed on to ``timm.create_model``.

    Returns
    -------
    module : nn.Module
        The model, without classifier.
    network : nn.Module or None
        The same model with the classifier that it was trained with, where the weights hold one.
    """
    if weights is None:
        return _create(architecture, **kwargs), None
    if isinstance(weights, str) and weights == "pretrained":
        return _create_pretrained(architecture, **kwargs)
    if isinstance(weights, Mapping):
        state, origin = dict(weights), "the state dict given as weights="
    else:
        state, origin = read_weights_file(weights), f"the file {str(weights)!r}"
    module = _create_from_state(architecture, state, origin, **kwargs)
    return module, _with_classifier(architecture, module, state, **kwargs)


def read_weights_file(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Read a file of weights without running code from it.

    Parameters
    ----------
    path : path-like
        A ``.safetensors`` file, or a torch checkpoint that ``weights_only=True`` accepts.

    Returns
    -------
    state : dict of str to tensor

    Raises
    ------
    WeightsNotFoundError
        If there is no such file.
    BackboneError
        If the file cannot be read as weights.
    """
    from timm.models import load_state_dict

    path = Path(path)
    if not path.is_file():
        raise WeightsNotFoundError(
            f"The 'weights' parameter names {str(path)!r}, and there is no such file. Give the path of a "
            ".safetensors or .pth file, weights='pretrained' for the backbone's own weights, or weights=None for a "
            "random start."
        )
    if not path.name.endswith(_SAFE_ENDINGS):
        raise BackboneError(
            f"The 'weights' parameter must be a file that ends in one of {', '.join(_SAFE_ENDINGS)}, got "
            f"{str(path)!r} instead."
        )
    try:
        return load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # safetensors, zipfile, pickle and torch each have their own
        raise BackboneError(f"The file {str(path)!r} cannot be read as weights: {error}") from error


def _create(architecture: str, seed: int = 0, num_classes: int | None = 0, **kwargs: Any) -> nn.Module:
    import timm

    with private_torch_rng(seed):
        return timm.create_model(architecture, num_classes=num_classes, **kwargs).float()  # whatever torch's default is


def _create_pretrained(architecture: str, **kwargs: Any) -> tuple[nn.Module, nn.Module | None]:
    try:
        network = _create(architecture, num_classes=None, pretrained=True, **kwargs)  # as published
        if not getattr(network, "num_classes", 0):
            return network, None
        module = _create(architecture, **kwargs)
        own = _without_classifier(module, network.state_dict())
        if _shapes(own) != _shapes(module.state_dict()):
            return _create(architecture, pretrained=True, **kwargs), None
    except Exception as error:  # whatever hub, network and disk may raise, told once and in full
        raise WeightsNotFoundError(not_found_message(architecture, error)) from error
    module.load_state_dict(own)
    return module, network


def _with_classifier(architecture: str, module: nn.Module, state: dict, **kwargs: Any) -> nn.Module | None:
    """Build the model with the classifier that a state dict holds; None if it holds none of the usual form."""
    classifier = module.pretrained_cfg.get("classifier")
    weight = state.get(f"{classifier}.weight") if isinstance(classifier, str) else None
    if weight is None:
        return None
    network = _create(architecture, num_classes=len(weight), **kwargs)
    if _shapes(state) != _shapes(network.state_dict()):
        return None
    network.load_state_dict(state)
    return network


def not_found_message(architecture: str, error: Exception) -> str:
    """Say that pretrained weights are out of reach, where they were looked for, and what to do."""
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"The pretrained weights of backbone={architecture!r} ({_wanted_file(architecture)}) are not in the cache "
        f"folder {hub_cache_folder()!r} and could not be fetched: {type(error).__name__}: {first_line} "
        "Without a network, either give a local file with weights='/path/to/model.safetensors', "
        "or use the backbone that ships with sktl, backbone='sktl/tiny'."
    )


def _wanted_file(architecture: str) -> str:
    from timm.models import get_pretrained_cfg, is_model

    if architecture.startswith(("hf-hub:", "local-dir:")):
        return f"{architecture.partition(':')[2]}/model.safetensors"
    name = architecture.partition(".")[0]
    cfg = get_pretrained_cfg(architecture) if is_model(name) else None
    if cfg is None:
        return "model.safetensors"
    if cfg.hf_hub_id:
        return f"{cfg.hf_hub_id}/model.safetensors"
    return cfg.url or "no weights are published for it"


def hub_cache_folder() -> str:
    """Return the folder in which the hub's files are kept."""
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _create_from_state(architecture: str, state: dict[str, torch.Tensor], origin: str, **kwargs: Any) -> nn.Module:
    """Load weights, and make sure that they are this architecture's: timm only logs what is missing."""
    module = _create(architecture, **kwargs)
    own = _without_classifier(module, state)
    if _shapes(own) == _shapes(module.state_dict()):
        module.load_state_dict(own)
        return module
    try:
        if not state:  # timm would take an empty one for none, and ask the hub
            raise ValueError("it is empty.")
        return _create_through_timm_filter(architecture, state, **kwargs)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise BackboneError(
            f"The weights in {origin} do not fit backbone={architecture!r}: {reason} "
            "Name the architecture that they were saved from."
        ) from error


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _without_classifier(module: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    classifiers = module.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([classifiers] if isinstance(classifiers, str) else classifiers))
    return {key: value for key, value in state.items() if not key.startswith(prefixes)} if prefixes else dict(state)


def _create_through_timm_filter(architecture: str, state: dict[str, torch.Tensor], **kwargs: Any) -> nn.Module:
    """Let timm's own checkpoint filter rename the keys; what two random starts do not share was not loaded."""
    overlay = {"state_dict": state, "source": ""}
    with _quiet_timm():
        first, second = (
            _create(architecture, seed=seed, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
            for seed in (0, 1)
        )
    other = second.state_dict()
    missing = [name for name, value in first.state_dict().items() if not torch.equal(value, other[name])]
    if missing:
        raise ValueError(f"it holds nothing for {missing[0]!r} and {len(missing) - 1} more.")
    first.pretrained_cfg.pop("state_dict", None)  # kept by timm; it would double the size of every copy
    return first


@contextmanager
def _quiet_timm() -> Iterator[None]:
    """Keep timm from logging every key of a file that does not fit; the caller says it in one sentence."""
    logger = logging.getLogger("timm.models._builder")
    logger.addFilter(_drop_record)
    try:
        yield
    finally:
        logger.removeFilter(_drop_record)


def _drop_record(record: logging.LogRecord) -> bool:
    return False
