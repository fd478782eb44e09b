"""From what a user writes as ``backbone=`` to a :class:`Backbone`."""

import copy
import dataclasses
import difflib
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from numbers import Integral
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from torch import nn

from sktl._forks import ForkSafeLock
from sktl.backbones._backbone import Backbone, module_recipe, plain_data_config
from sktl.backbones._bundled import BUNDLED, bundled_card, bundled_state
from sktl.backbones._original import cut_off_head
from sktl.backbones._text_load import PREFIX, checked_length, load_text_backbone
from sktl.backbones._weights import Weights, create_with_weights, not_found_message
from sktl.exceptions import BackboneError, UnknownBackboneError, WeightsNotFoundError
from sktl.inputs import ImagePreprocessor


class _SharedBackbones:
    """The last few backbones that were loaded, so that clones and folds do not load them again."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._lock = ForkSafeLock(RLock)
        self._entries: OrderedDict[object, Backbone] = OrderedDict()

    def get(self, key: object, load: Callable[[], Backbone]) -> Backbone:
        with self._lock():
            if key not in self._entries:
                self._entries[key] = load()
                while len(self._entries) > self._capacity:
                    self._entries.popitem(last=False)
            self._entries.move_to_end(key)
            return self._entries[key]


_shared = _SharedBackbones(capacity=4)

_DATA_CONFIG_KEYS = {"input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"}
_TEXT_CONFIG_KEYS = {"max_length"}
# Endings of what a folder with a model holds: settings, vocabularies, weights.
_MODEL_FILES = (".json", ".txt", ".model", ".safetensors", ".bin", ".pth", ".pt")


def load_backbone(
    backbone: str | nn.Module,
    weights: Weights = "pretrained",
    data_config: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Backbone:
    """Load a pretrained network without its classifier.

    Parameters
    ----------
    backbone : str or nn.Module
        ``"sktl/tiny"``, a timm model name, ``"hf-hub:org/name"``, ``"local-dir:/path"``, a text encoder as
        ``"text:org/name"`` or ``"text:/path"``, or a network. A network is copied, never changed.
    weights : "pretrained", path, state dict or None, default="pretrained"
        Where the weights of a named backbone come from; None is a random start. A network that is given as a module
        keeps the weights it has.
    data_config : dict, default=None
        Overrides entries of the backbone's timm data config (``input_size``, ``mean``, ``std``, ``interpolation``,
        ``crop_pct``, ``crop_mode``), or the ``max_length`` of a text backbone.
    image_size : int or (int, int), default=None
        Height and width in pixels to which images are brought; None keeps the backbone's own.

    Returns
    -------
    backbone : Backbone
        Shared inside the process; do not change its module.

    Raises
    ------
    UnknownBackboneError
        If no backbone has that name.
    WeightsNotFoundError
        If the weights cannot be found.
    BackboneError
        If the weights do not fit, or the network cannot be run.

    Examples
    --------
    >>> from sktl.backbones import load_backbone
    >>> load_backbone("sktl/tiny").data_config["input_size"][0]
    3
    """
    kind = input_kind(backbone)
    overrides = _overrides(data_config, image_size, kind)
    if isinstance(backbone, nn.Module):
        if not (isinstance(weights, str) and weights == "pretrained"):
            raise BackboneError("The 'weights' parameter is for named backbones; load them into your network instead.")
        return _from_module(backbone, overrides)
    if isinstance(weights, Mapping):
        return _from_name(backbone, weights, overrides)
    key = (
        backbone,
        _source_identity(backbone),
        _weights_identity(weights),
        repr(sorted(plain_data_config(overrides).items())),
    )
    source = {"backbone": backbone, "weights": weights, "data_config": data_config and dict(data_config)}
    source["image_size"] = image_size
    return _shared.get(key, lambda: _with_source(_from_name(backbone, weights, overrides).in_use(), source))


def input_kind(backbone: str | nn.Module) -> str:
    """Say what a backbone embeds, before it is loaded.

    Parameters
    ----------
    backbone : str or nn.Module
        As for :func:`load_backbone`.

    Returns
    -------
    kind : {"images", "texts"}

    Examples
    --------
    >>> from sktl.backbones import input_kind
    >>> input_kind("sktl/tiny"), input_kind("text:org/name")
    ('images', 'texts')
    """
    return "texts" if isinstance(backbone, str) and backbone.startswith(PREFIX) else "images"


def adapt_backbone(
    backbone: Backbone, data_config: Mapping[str, Any] | None = None, image_size: int | tuple[int, int] | None = None
) -> Backbone:
    """Return a backbone that is already loaded with another data config; its network is shared, not copied.

    Parameters
    ----------
    backbone : Backbone
        Left as it is.
    data_config, image_size : default=None
        As in :func:`load_backbone`.
    """
    overrides = _overrides(data_config, image_size, backbone.input_kind)
    if not overrides:
        return backbone
    config = {**backbone.data_config, **overrides}
    if backbone.input_kind == "texts":  # a model of an older version does not tell the limit
        checked_length(config["max_length"], backbone.recipe.get("limit", backbone.data_config["max_length"]))
    adapted = Backbone.from_module(backbone.name, backbone.module, backbone.recipe, config)
    return adapted.with_original_head(backbone.original_head)


def list_backbones(filter: str = "", *, pretrained: bool = True) -> list[str]:
    """List what can be named as ``backbone=``.

    Parameters
    ----------
    filter : str, default=""
        A wildcard such as ``"*resnet*"``; empty lists all.
    pretrained : bool, default=True
        Only names for which pretrained weights are published.

    Returns
    -------
    names : list of str
        The bundled backbones first, then timm's.

    Examples
    --------
    >>> import sktl
    >>> sktl.list_backbones()[0]
    'sktl/tiny'
    >>> "resnet50.a1_in1k" in sktl.list_backbones("resnet50*")
    True
    """
    from fnmatch import fnmatch

    import timm

    bundled = [name for name in BUNDLED if not filter or fnmatch(name, filter)]
    return bundled + list(timm.list_models(filter, pretrained=pretrained))


def _overrides(
    data_config: Mapping[str, Any] | None, image_size: int | tuple[int, int] | None, kind: str
) -> dict[str, Any]:
    """Return what is to be changed of a data config, for a backbone that takes images or texts."""
    overrides = {key: _plain(value) for key, value in (data_config or {}).items() if value is not None}
    known = _TEXT_CONFIG_KEYS if kind == "texts" else _DATA_CONFIG_KEYS
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise BackboneError(f"The 'data_config' parameter must not hold {unknown[0]!r}; it may hold {sorted(known)}.")
    if image_size is not None:
        if kind == "texts":
            raise BackboneError("The 'image_size' parameter must be None for a backbone that takes texts.")
        overrides["input_size"] = (3, *_pair(image_size))
    if kind == "images":
        ImagePreprocessor({"input_size": (3, 224, 224), **overrides})  # refuses what no image can be brought to
    return overrides


def _plain(value: Any) -> Any:
    """Return what holds numbers of numpy with Python's own, which JSON knows."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _pair(image_size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (image_size,) * 2 if isinstance(image_size, Integral) else tuple(image_size)
    if len(pair) != 2 or not all(isinstance(side, Integral) and side > 0 for side in pair):
        raise BackboneError(f"The 'image_size' parameter must be (height, width) or an int, got {image_size!r}.")
    return int(pair[0]), int(pair[1])


def _weights_identity(weights: str | os.PathLike | None) -> object:
    """Return what tells one source of weights from another: a file that was rewritten is a new one."""
    if weights is None or weights == "pretrained" or not os.path.isfile(weights):
        return weights
    return _file_identity(weights)


def _source_identity(name: str) -> object:
    """Return what tells one content of a folder from another; other names stand for themselves."""
    prefix, separator, folder = name.partition(":")
    if f"{prefix}{separator}" == PREFIX:
        folder = os.path.expanduser(folder)
    elif prefix.lower() != "local-dir":  # timm takes its prefixes in any case
        return None
    files = sorted(Path(folder).rglob("*")) if os.path.isdir(folder) else []
    return tuple(_file_identity(path) for path in files if path.suffix in _MODEL_FILES and path.is_file())


def _file_identity(path: str | os.PathLike) -> tuple[str, int, int]:
    status = os.stat(path)
    return os.path.realpath(path), status.st_mtime_ns, status.st_size


def _with_source(backbone: Backbone, source: dict[str, Any]) -> Backbone:
    """Note in the head of the old task by which arguments its backbone was loaded."""
    if backbone.original_head is None:
        return backbone
    return backbone.with_original_head(dataclasses.replace(backbone.original_head, source=source))


def _from_name(name: str, weights: Weights, overrides: dict[str, Any]) -> Backbone:
    if name.startswith(PREFIX):
        return load_text_backbone(name, weights, overrides)
    if name in BUNDLED:
        return _from_bundled(name, weights, overrides)
    _check_name(name)
    architecture, kwargs = _architecture(name)
    if "input_size" in overrides and _has_fixed_size(name, architecture):
        kwargs["img_size"] = tuple(overrides["input_size"][1:])
    module, network = create_with_weights(name, weights, **kwargs)
    recipe = {"kind": "timm", "architecture": architecture, "kwargs": kwargs}
    return _with_data_config(name, module, recipe, overrides, network)


def _from_bundled(name: str, weights: Weights, overrides: dict[str, Any]) -> Backbone:
    card = bundled_card(name)
    kwargs = dict(card["architecture_kwargs"])
    if isinstance(weights, str) and weights == "pretrained":
        weights = bundled_state(name)
    module, _ = create_with_weights(card["architecture"], weights, **kwargs)
    recipe = {"kind": "timm", "architecture": card["architecture"], "kwargs": kwargs}
    return Backbone.from_module(name, module, recipe, {**card["data_config"], **overrides})


def _from_module(module: nn.Module, overrides: dict[str, Any]) -> Backbone:
    network = copy.deepcopy(module).cpu().float()
    whole = None
    if hasattr(network, "reset_classifier") and getattr(network, "num_classes", 0):
        whole = copy.deepcopy(network)
        network.reset_classifier(0)
    name = type(module).__name__
    backbone = _with_data_config(name, network, {}, overrides, whole)
    backbone.recipe.update(module_recipe(backbone.module))
    return backbone


def _with_data_config(
    name: str, module: nn.Module, recipe: dict, overrides: dict[str, Any], network: nn.Module | None
) -> Backbone:
    from timm.data import resolve_model_data_config

    backbone = Backbone.from_module(name, module, recipe, {**resolve_model_data_config(module), **overrides})
    if network is None:
        return backbone
    return backbone.with_original_head(cut_off_head(network, backbone.module, backbone.data_config["input_size"]))


def _architecture(name: str) -> tuple[str, dict[str, Any]]:
    """Return the plain timm architecture behind a name, and the arguments that its source adds."""
    from timm.models import load_model_config_from_hf, parse_model_name, split_model_name_tag
    from timm.models._hub import load_model_config_from_path

    source, identifier = parse_model_name(name)
    if source is None:
        return split_model_name_tag(identifier)[0], {}
    load = {"hf-hub": load_model_config_from_hf, "local-dir": load_model_config_from_path}[source]
    try:
        _, architecture, kwargs = load(identifier)
    except Exception as error:  # whatever hub, network and disk may raise
        raise WeightsNotFoundError(not_found_message(name, error)) from error
    return architecture, {key: value for key, value in kwargs.items() if key != "num_classes"}


def _has_fixed_size(name: str, architecture: str) -> bool:
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(architecture, allow_unregistered=True)
    return bool(cfg and cfg.fixed_input_size)


def _check_name(name: str) -> None:
    """Raise an error with close matches unless timm knows the name."""
    from timm.models import is_model, list_models, list_pretrained, parse_model_name, split_model_name_tag

    try:
        source, identifier = parse_model_name(name)
    except ValueError as error:
        message = _unknown_message(name, difflib.get_close_matches(name, BUNDLED))
        raise UnknownBackboneError(f"{message} {error}") from error
    if source is not None:
        return
    architecture, tag = split_model_name_tag(identifier)
    if not is_model(architecture):
        known = [*BUNDLED, *list_models()]
        raise UnknownBackboneError(_unknown_message(name, difflib.get_close_matches(name, known, n=3, cutoff=0.5)))
    tagged = list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise UnknownBackboneError(_unknown_message(name, difflib.get_close_matches(name, tagged, n=3, cutoff=0.3)))


def _unknown_message(name: str, matches: list[str]) -> str:
    guess = f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""
    return f"There is no backbone {name!r}.{guess} sktl.list_backbones() lists all names."
