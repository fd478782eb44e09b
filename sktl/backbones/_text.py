"""Encoders of texts as backbones: tokens in, one vector per text out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sktl._deps import import_extra
from sktl.backbones._groups import join_norms
from sktl.backbones._tokens import PADDING
from sktl.exceptions import BackboneError

_ATTENTION = "sktl_sdpa"


class TextEncoder(nn.Module):
    """A Hugging Face encoder and the way in which its tokens become one vector.

    Parameters
    ----------
    encoder : PreTrainedModel
        Gives ``last_hidden_state`` for ``input_ids`` and ``attention_mask``.
    pad_token : int
        The token that the encoder is given behind the end of a row.
    pooling : sequence of str
        Names from ``TEXT_POOLINGS``; their results are concatenated.
    normalize : bool, default=False
        Scale the vector to Euclidean length 1, as the encoder was trained to be used.
    """

    def __init__(self, encoder: nn.Module, pad_token: int, pooling: Sequence[str], normalize: bool = False):
        super().__init__()
        self.encoder = encoder
        self.pad_token = pad_token
        self.pooling = list(pooling)
        self.normalize = normalize

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embed rows of tokens.

        Parameters
        ----------
        tokens : tensor of int of shape (n, length)
            Filled up with -1.
        """
        mask = tokens != PADDING
        output = self.encoder(input_ids=torch.where(mask, tokens, self.pad_token).long(), attention_mask=mask.long())
        vectors = pool_tokens(output.last_hidden_state, mask, self.pooling)
        return nn.functional.normalize(vectors, dim=1) if self.normalize else vectors

    @property
    def layers(self) -> list[str]:
        """Names of the encoder's layers, from the input to the output."""
        n_layers = getattr(self.encoder.config, "num_hidden_layers", None)
        for name, part in self.named_modules():
            if isinstance(part, nn.ModuleList) and len(part) == n_layers:
                return [f"{name}.{index}" for index in range(n_layers)]
        return []

    def layer_groups(self) -> list[list[str]]:
        """Names of parameters by depth: what is before the layers, each layer, and what comes after the last.

        A normalisation that comes after the last layer belongs to it.
        """
        groups: list[list[str]] = [[] for _ in range(len(self.layers) + 2)]
        prefixes = [f"{name}." for name in self.layers]
        depth = 0
        for name, _ in self.named_parameters():
            own = next((index + 1 for index, prefix in enumerate(prefixes) if name.startswith(prefix)), None)
            depth = own or (0 if depth == 0 else len(prefixes) + 1)
            groups[depth].append(name)
        return join_norms(self, [group for group in groups if group])


def pool_tokens(hidden: torch.Tensor, mask: torch.Tensor, pooling: Sequence[str]) -> torch.Tensor:
    """Turn the vectors of tokens into one per text, in float32.

    Parameters
    ----------
    hidden : tensor of shape (n, length, width)
        One vector per token.
    mask : tensor of bool of shape (n, length)
        False where a row has ended.
    pooling : sequence of str
        Names from ``TEXT_POOLINGS``.
    """
    hidden = hidden.to(torch.float32, copy=True)  # copied: see _in_float32 of the views
    return torch.cat([TEXT_POOLINGS[name](hidden, mask) for name in pooling], dim=1)


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _sum(hidden, mask) / _count(mask)


def _sum(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (hidden * mask.unsqueeze(-1)).sum(dim=1)


def _count(mask: torch.Tensor) -> torch.Tensor:
    return mask.sum(dim=1, keepdim=True).clamp(min=1).to(torch.float32)


def _max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(~mask.unsqueeze(-1), torch.finfo(hidden.dtype).min).amax(dim=1)


def _mean_and_max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (_mean(hidden, mask) + _max(hidden, mask)) / 2


def _first(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[:, 0]


def _last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    last = mask.sum(dim=1).clamp(min=1) - 1
    return hidden.gather(1, last.view(-1, 1, 1).expand(-1, 1, hidden.shape[2])).squeeze(1)


def _mean_of_root(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _sum(hidden, mask) / _count(mask).sqrt()


def _weighted_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Later tokens count more (Muennighoff, SGPT, 2022)."""
    weight = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (hidden * weight.unsqueeze(-1)).sum(dim=1) / weight.sum(dim=1, keepdim=True).clamp(min=1)


# sktl's names, as for images, and those of sentence-transformers.
TEXT_POOLINGS = {
    "avg": _mean,
    "max": _max,
    "avgmax": _mean_and_max,
    "cls": _first,
    "mean": _mean,
    "lasttoken": _last,
    "mean_sqrt_len_tokens": _mean_of_root,
    "weightedmean": _weighted_mean,
}


def build_text_encoder(recipe: dict[str, Any]) -> TextEncoder:
    """Build the encoder that a recipe describes, at a random start.

    Parameters
    ----------
    recipe : dict
        With ``config`` (the encoder's own, as a dict), ``pad_token``, ``pooling`` and ``normalize``.
    """
    transformers = import_extra("transformers", extra="text", caller="A text backbone")
    config = dict(recipe["config"])
    config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    encoder = used_part(transformers.AutoModel.from_config(config))
    if encoder.config._attn_implementation == "sdpa":
        encoder.set_attn_implementation(_masked_attention(transformers))
    return TextEncoder(encoder, recipe["pad_token"], recipe["pooling"], recipe["normalize"]).float().eval()


def used_part(encoder: nn.Module) -> nn.Module:
    """Return the part of a model that embeddings come from: no decoder, and no layer for a task of the pretraining."""
    if getattr(encoder.config, "is_encoder_decoder", False):
        encoder = encoder.get_encoder()
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder


def _masked_attention(transformers) -> str:
    """Return the name of torch's attention, registered so that it always gets a mask.

    transformers leaves the mask out of batches in which no row is padded, and torch then takes another program: a row's
    embedding would depend on its neighbours, if only in the last digits.
    """
    masks = transformers.AttentionMaskInterface
    if _ATTENTION not in masks._global_mapping:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import sdpa_mask

        def always_masked(*args: Any, **kwargs: Any) -> torch.Tensor | None:
            return sdpa_mask(*args, **{**kwargs, "allow_is_bidirectional_skip": False})

        masks.register(_ATTENTION, always_masked)
        transformers.AttentionInterface.register(_ATTENTION, sdpa_attention_forward)
    return _ATTENTION


def check_text_view(pooling: str, tta: str | None) -> None:
    """Refuse the choices that only images have."""
    if pooling == "none":
        raise BackboneError("pooling='none' is not possible for texts, which have different numbers of tokens.")
    if tta is not None:
        raise BackboneError(f"The 'tta' parameter must be None for a text backbone, got {tta!r}: texts have no mirror.")
