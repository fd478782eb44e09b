"""From ``"text:org/name"`` or ``"text:/folder"`` to a backbone."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sktl._deps import import_extra
from sktl._random import private_torch_rng
from sktl.backbones._backbone import Backbone
from sktl.backbones._text import TEXT_POOLINGS, TextEncoder, build_text_encoder, used_part
from sktl.backbones._tokens import tokens_config
from sktl.backbones._weights import Weights, hub_cache_folder, read_weights_file
from sktl.exceptions import BackboneError, MissingExtraError, WeightsNotFoundError

PREFIX = "text:"
_LIMIT_OF_ENDLESS = 512  # of encoders that name no limit of their own
_NO_LIMIT = 10**6  # transformers writes "none" as a number with thirty digits
_NOT_USED = ("pooler.",)  # no embedding depends on it


def load_text_backbone(name: str, weights: Weights, overrides: Mapping[str, Any]) -> Backbone:
    """Load a Hugging Face encoder with its tokenizer, pooled as its folder says.

    Parameters
    ----------
    name : str
        ``"text:org/name"`` or ``"text:/folder"``.
    weights : "pretrained", path, state dict or None
        Where the weights come from; None is a random start (always the same one).
    overrides : dict
        May hold ``max_length``.

    Returns
    -------
    backbone : Backbone
        Takes texts.
    """
    transformers = import_extra("transformers", extra="text", caller=f"backbone={name!r}")
    source = find_source(name)
    options = {"trust_remote_code": False}
    with _explained(name, source), _quiet(transformers):
        config = transformers.AutoConfig.from_pretrained(source, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        usage = _read_usage(transformers, source)
        _check_tokenizer(transformers, name, source, tokenizer)
        recipe = _recipe(config, tokenizer, usage)
        module = _with_weights(transformers, name, source, weights, config, recipe)
    limit = _limit(module, config, tokenizer, usage)
    recipe["limit"] = limit
    settings = {
        "max_length": checked_length(overrides.get("max_length", limit), limit),
        "prompt": usage["prompt"],
        "lowercase": usage["lowercase"],
    }
    vocabulary = min(len(tokenizer), getattr(config, "vocab_size", len(tokenizer)))
    data_config = tokens_config(recipe["tokenizer"], vocabulary, **settings)
    return Backbone.from_module(name, module, recipe, data_config)


def find_source(name: str) -> str:
    """Return the folder or the hub's name behind a text backbone's name.

    Raises
    ------
    BackboneError
        If it names nothing, or a folder that is no model.
    WeightsNotFoundError
        If it names a folder that is not there.
    """
    source = os.path.expanduser(name.removeprefix(PREFIX))
    if not source:
        raise BackboneError("The 'backbone' parameter names no encoder; give 'text:org/name' or 'text:/folder'.")
    if os.path.isdir(source):
        if not os.path.isfile(os.path.join(source, "config.json")):
            raise BackboneError(
                f"The folder {source!r} of backbone={name!r} is no model: it has no config.json. It must hold "
                "config.json, tokenizer.json and model.safetensors, as transformers' save_pretrained writes them."
            )
        return source
    if os.path.isabs(source) or source.startswith(".") or source.count("/") > 1:
        raise WeightsNotFoundError(f"backbone={name!r} names the folder {source!r}, and there is no such folder.")
    return source


@contextmanager
def _explained(name: str, source: str) -> Iterator[None]:
    try:
        yield
    except (BackboneError, MissingExtraError):
        raise
    except Exception as error:  # whatever transformers, tokenizers, hub and disk may raise, told once and in full
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        if os.path.isdir(source):
            raise BackboneError(
                f"The folder {source!r} of backbone={name!r} cannot be loaded as a text encoder: "
                f"{type(error).__name__}: {line}"
            ) from error
        raise WeightsNotFoundError(
            f"backbone={name!r} is not in the cache folder {hub_cache_folder()!r} and could not be fetched: "
            f"{type(error).__name__}: {line} Without a network, give a local folder: backbone='text:/path'."
        ) from error


@contextmanager
def _quiet(transformers) -> Iterator[None]:
    """Keep transformers from drawing bars and logging what the caller says in one sentence."""
    logging = transformers.utils.logging
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


# How the encoder is meant to be used: the files of sentence-transformers --------------------------------------------


def _read_usage(transformers, source: str) -> dict[str, Any]:
    """Return pooling, normalisation, limit and prompt as sentence-transformers' files say, or plain defaults."""
    usage: dict[str, Any] = {"pooling": ["mean"], "normalize": False, "limit": None, "prompt": "", "lowercase": False}
    pools_prompt = True
    modules = _read_json(transformers, source, "modules.json")
    if modules is None:
        return usage
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        if kind == "Transformer":
            own = _read_json(transformers, source, _in_folder(module["path"], "sentence_bert_config.json")) or {}
            usage.update(limit=own.get("max_seq_length"), lowercase=bool(own.get("do_lower_case")))
        elif kind == "Pooling":
            config = _read_json(transformers, source, _in_folder(module["path"], "config.json")) or {}
            usage["pooling"], pools_prompt = _pooling(config), config.get("include_prompt", True)
        elif kind == "Normalize":
            usage["normalize"] = True
        else:
            raise BackboneError(
                f"The model of sentence-transformers at {source!r} has a part of type {kind!r}, which sktl does not "
                "know; it knows Transformer, Pooling and Normalize."
            )
    card = _read_json(transformers, source, "config_sentence_transformers.json") or {}
    usage["prompt"] = (card.get("prompts") or {}).get(card.get("default_prompt_name")) or ""
    if usage["prompt"] and not pools_prompt:
        raise BackboneError(f"The encoder at {source!r} leaves its prompt out of the pooling, which sktl cannot do.")
    return usage


def _in_folder(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file


def _pooling(config: dict[str, Any]) -> list[str]:
    """Return the names of the poolings that a file of sentence-transformers asks for, in its order."""
    named = config.get("pooling_mode")
    if named is None:
        flags = {key: key.removeprefix("pooling_mode_") for key, value in config.items() if value is True}
        short = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean", "weightedmean_tokens": "weightedmean"}
        found = [short.get(flag, flag) for key, flag in flags.items() if key.startswith("pooling_mode_")]
        named = [pooling for pooling in _ORDER if pooling in found] or ["mean"]
    poolings = [named] if isinstance(named, str) else list(named)
    unknown = [pooling for pooling in poolings if pooling not in TEXT_POOLINGS]
    if unknown:
        raise BackboneError(f"The encoder is pooled by {unknown[0]!r}, which sktl does not know.")
    return poolings


_ORDER = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def _read_json(transformers, source: str, file: str) -> Any:
    """Return the content of a file of the model, or None if it has no such file."""
    found = _find_file(transformers, source, file)
    return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))


def _find_file(transformers, source: str, file: str) -> str | None:
    return transformers.utils.cached_file(
        source, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )


# Parts ---------------------------------------------------------------------------------------------------------------


def _check_tokenizer(transformers, name: str, source: str, tokenizer) -> None:
    """Refuse a tokenizer that is none: without files transformers makes one that knows no word."""
    files = sorted({"tokenizer.json", *getattr(tokenizer, "vocab_files_names", {}).values()})
    if not any(_find_file(transformers, source, file) for file in files):
        raise BackboneError(f"backbone={name!r} has no tokenizer: none of the files {files} is there.")
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise BackboneError(
            f"The tokenizer of backbone={name!r} ({type(tokenizer).__name__}) has no form for the library 'tokenizers' "
            "(a file tokenizer.json), which sktl needs."
        )


def _recipe(config, tokenizer, usage: dict[str, Any]) -> dict[str, Any]:
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    pad_tokens = (tokenizer.pad_token_id, getattr(config, "pad_token_id", None))
    return {
        "kind": "text",
        "config": {**config.to_diff_dict(), "model_type": config.model_type},
        "tokenizer": backend.to_str(),
        "pad_token": int(next((token for token in pad_tokens if token is not None), 0)),
        "pooling": usage["pooling"],
        "normalize": usage["normalize"],
    }


def _with_weights(
    transformers, name: str, source: str, weights: Weights, config, recipe: dict[str, Any]
) -> TextEncoder:
    with private_torch_rng(0):
        module = build_text_encoder(recipe)
        if weights is None:
            return module
        options = {"dtype": torch.float32, "output_loading_info": True}
        if isinstance(weights, str) and weights == "pretrained":
            encoder, info = transformers.AutoModel.from_pretrained(source, trust_remote_code=False, **options)
        else:
            state = dict(weights) if isinstance(weights, Mapping) else read_weights_file(weights)
            encoder, info = type(module.encoder).from_pretrained(None, config=config, state_dict=state, **options)
    _check_complete(name, info)
    # Into the encoder that the recipe builds, for those that transformers loads carry notes of how they were loaded.
    module.encoder.load_state_dict(used_part(encoder).state_dict())
    return module


def _check_complete(name: str, info: dict[str, Any]) -> None:
    """Refuse weights that leave a part of the encoder at random, which transformers only logs."""
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(_NOT_USED))
    wrong = [*info["mismatched_keys"], *info["error_msgs"]]
    if missing or wrong:
        what = f"they hold nothing for {missing[0]!r} and {len(missing) - 1} more" if missing else f"{wrong[0]}"
        raise BackboneError(f"The weights do not fit backbone={name!r}: {what}.")


def _limit(module: nn.Module, config, tokenizer, usage: dict[str, Any]) -> int:
    """Return how many tokens the encoder takes: as its files say, or as many as it has positions."""
    named = [usage["limit"], tokenizer.model_max_length]
    named = [int(limit) for limit in named if limit and limit < _NO_LIMIT]
    positions = getattr(config, "max_position_embeddings", None)
    if not positions or positions < 0:
        return min(named, default=_LIMIT_OF_ENDLESS)
    if named and min(named) < positions:
        return min(named)
    tables = (part.num_embeddings for part in module.modules() if isinstance(part, nn.Embedding))
    if positions not in tables:  # positions are computed: one is as good as another, and a pass on all costs gigabytes
        return positions
    word = 1 if module.pad_token == 0 else 0
    try:
        with torch.inference_mode():
            module(torch.full((1, positions), word, dtype=torch.int32))
    except (IndexError, RuntimeError):  # RoBERTa's positions begin behind that of the padding
        return positions - module.pad_token - 1
    return positions


def checked_length(length: int, limit: int) -> int:
    """Return a ``max_length`` if an encoder takes as many tokens, else raise an error."""
    if isinstance(length, bool) or not isinstance(length, int) or not 3 <= length <= limit:
        raise BackboneError(
            f"'max_length' of the 'data_config' parameter must be an int in the range [3, {limit}], the encoder's "
            f"limit, got {length!r} instead."
        )
    return length
