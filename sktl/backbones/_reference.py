"""Weights that are named rather than kept: those of a public network, and what training changed of them."""

import copy
import hashlib
import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import nn

from sktl.backbones._bundled import name_meant_once, versioned_name
from sktl.backbones._describe import tensor_bytes
from sktl.backbones._load import load_backbone
from sktl.backbones._original import OriginalHead, class_names
from sktl.backbones._stored import current_shelf, pack_tensors, unpack_tensors
from sktl.exceptions import BackboneError, UntrustedTypeError, WeightsMismatchError, WeightsNotFoundError

LowRank = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def add_low_rank(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return a weight plus the product of two matrices; always by the same operations, so to the same bits.

    Parameters
    ----------
    weight : tensor of shape (n_outputs, ...)
        Left as it is.
    left : tensor of shape (n_outputs, rank)
    right : tensor of shape (rank, n)
        As many columns as a row of the weight has values.
    """
    return weight + (left @ right).view_as(weight)


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


class ReferredWeights:
    """Weights by the name of a public network, pinned by SHA-256, and what differs from it.

    Parameters
    ----------
    source : dict
        Arguments of :func:`~sktl.backbones.load_backbone`.
    sha256 : str
        Of the public weights.
    changed : dict of str to tensor
        The weights that differ.
    low_rank : dict of str to pair of tensor
        Matrices whose products are to be added to weights.
    """

    def __init__(self, source: dict[str, Any], sha256: str, changed: Mapping[str, torch.Tensor], low_rank: LowRank):
        self.source = source
        self.sha256 = sha256
        self.changed = changed
        self.low_rank = low_rank

    def __getstate__(self) -> dict[str, Any]:
        matrices = {
            f"{name}:{side}": matrix
            for name, pair in self.low_rank.items()
            for side, matrix in zip(("left", "right"), pair, strict=True)
        }
        packed = {"changed": _pack(self.changed), "low_rank": _pack(matrices)}
        return {"source": _shown_source(self.source), "sha256": self.sha256, **packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        matrices = unpack_tensors(state["low_rank"])
        names = sorted({name.rpartition(":")[0] for name in matrices})
        low_rank = {name: (matrices[f"{name}:left"], matrices[f"{name}:right"]) for name in names}
        self.__init__(state["source"], state["sha256"], unpack_tensors(state["changed"]), low_rank)

    def unpack(self) -> dict[str, torch.Tensor]:
        """Find the public weights, check that they are the ones that were meant, and apply what was trained.

        Raises
        ------
        WeightsNotFoundError
            If they are out of reach.
        WeightsMismatchError
            If they are others.
        """
        source = _checked_source(self.source)
        try:
            start = load_backbone(**source).module.state_dict()
        except BackboneError as error:
            raise WeightsNotFoundError(
                f"This model refers to the weights of {source['backbone']!r} (weights={source['weights']!r}), of which "
                f"it holds only what was trained: {error}"
            ) from error
        found = digest_of(start)
        if found != self.sha256:
            raise WeightsMismatchError(
                f"This model refers to weights of {source['backbone']!r} with SHA-256 {self.sha256}, but those found "
                f"here (weights={source['weights']!r}) have {found}. Give the weights that it was trained from, or "
                "save it with persist='embed'."
            )
        added = {name: add_low_rank(start[name], *pair) for name, pair in self.low_rank.items()}
        return {**start, **self.changed, **added}


class ReferredHead:
    """The head of an old task by the name of the network that it belongs to; looked up when it is first asked for.

    Parameters
    ----------
    source : dict
        Arguments of :func:`~sktl.backbones.load_backbone`.
    sha256 : str
        Of its weights.
    n_classes : int
        How many scores it gives.
    """

    def __init__(self, source: dict[str, Any], sha256: str, n_classes: int):
        self.source, self.sha256, self.n_classes = source, sha256, n_classes
        self._refusal: BackboneError | UntrustedTypeError | None = None

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "ReferredHead":
        """Return the head that a pickle or a file names; if it may not be looked up, its first use raises the error."""
        head = cls(state["source"], state["sha256"], state["n_classes"])
        try:
            head.source = _checked_source(head.source)
        except (WeightsNotFoundError, UntrustedTypeError) as error:
            head._refusal = error
        return head

    def state(self) -> dict[str, Any]:
        """Return what a pickle or a file holds of it."""
        return {"source": _shown_source(self.source), "sha256": self.sha256, "n_classes": self.n_classes}

    def look_in(self, weights: Any) -> None:
        """Look the head up in this file of weights, if it is a file, instead of the place where it was when named."""
        is_file = isinstance(weights, str | os.PathLike) and os.path.isfile(weights)
        if is_file and self._refusal is None and self.source["weights"] != "pretrained":
            self.source = {**self.source, "weights": weights}

    @cached_property
    def classes(self) -> np.ndarray:
        """The labels of the old task."""
        return class_names(self.n_classes)

    @cached_property
    def module(self) -> nn.Module:
        """The head itself.

        Raises
        ------
        WeightsNotFoundError
            If it is out of reach.
        WeightsMismatchError
            If what is found is another one.
        UntrustedTypeError
            If the file that names it was loaded without trust in the place where it is.
        """
        return _heads.get(self.sha256) or self._found()

    def _found(self) -> nn.Module:
        asked = (
            f"The original classifier of {self.source['backbone']!r} is no part of this stored model: it is looked up "
            "where the network was published (fit with persist='embed_all' to have it stored)"
        )
        if self._refusal is not None:
            refusal = copy.copy(self._refusal)
            refusal.args = (f"{asked}, but {self._refusal}",)
            raise refusal
        try:
            head = load_backbone(**self.source).original_head
        except BackboneError as error:
            raise WeightsNotFoundError(f"{asked}, and was not found: {error}") from error
        found = None if head is None else digest_of(head.module.state_dict())
        if found != self.sha256:
            raise WeightsMismatchError(
                f"{asked}, but what was found (weights={self.source['weights']!r}) is another one: its SHA-256 is "
                f"{found}, not {self.sha256}."
            )
        return head.module


def refer_head(head: OriginalHead | ReferredHead) -> ReferredHead | None:
    """Name the head of an old task instead of keeping it; None if it has no name."""
    if isinstance(head, ReferredHead) or head.source is None:
        return head if isinstance(head, ReferredHead) else None
    digest = digest_of(head.module.state_dict())
    _heads[digest] = head.module
    return ReferredHead(head.source, digest, len(head.classes))


_heads: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()  # by SHA-256, while in use


def _checked_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return where weights are; a file may name only what the caller gives or trusts, and published ones."""
    shelf, source = current_shelf(), dict(source)
    source["backbone"] = name_meant_once(source["backbone"])
    if shelf is None:
        return source
    if source["weights"] != "pretrained":
        if shelf.weights is None:
            raise WeightsNotFoundError(
                f"it refers to the weights {source['weights']!r} of {source['backbone']!r}; give that file as "
                "weights= to sktl.load, or as --weights on the command line."
            )
        source["weights"] = shelf.weights
    if ":" in source["backbone"] and not shelf.is_trusted(source["backbone"]):
        raise UntrustedTypeError(
            f"it refers to the network {source['backbone']!r}, which is looked up elsewhere; if you trust that "
            "place, add it to the list trusted=.",
            [source["backbone"]],
        )
    return source


def _shown_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return a source as a pickle holds it, or as a file does, which does not tell where it was made."""
    if current_shelf() is None or source["weights"] == "pretrained":
        return dict(source)
    return {**source, "weights": os.path.basename(source["weights"])}


def check_referable(backbone: Any, weights: Any) -> None:
    """Raise an error unless a network's weights can be named.

    Parameters
    ----------
    backbone, weights : object
        As for :func:`~sktl.backbones.load_backbone`.

    Raises
    ------
    BackboneError
        If they have no name that could be looked up again.
    """
    if not isinstance(backbone, str) or not isinstance(weights, str | os.PathLike):
        raise BackboneError(
            "persist='reference' needs weights that can be named: a backbone by its name, with weights='pretrained' or "
            "a file. Use persist='embed' for a network of your own, a state dict, or a random start."
        )


def refer(state: Mapping[str, torch.Tensor], low_rank: LowRank, **source: Any) -> ReferredWeights:
    """Describe weights by the public ones that they come from.

    Parameters
    ----------
    state : dict of str to tensor
        The weights as they are.
    low_rank : dict of str to pair of tensor
        Matrices whose products were added to weights by :func:`add_low_rank`.
    **source : dict
        Arguments of :func:`~sktl.backbones.load_backbone` for the public weights.

    Returns
    -------
    weights : ReferredWeights
    """
    source["backbone"] = versioned_name(source["backbone"])
    start = load_backbone(**source).module.state_dict()
    changed = {name: value for name, value in state.items() if not torch.equal(value, start[name])}
    factors = {
        name: pair
        for name, pair in low_rank.items()
        if name in changed and torch.equal(add_low_rank(start[name], *pair), changed[name])
    }
    kept = {name: value for name, value in changed.items() if name not in factors}
    return ReferredWeights(source, digest_of(start), kept, factors)


def _pack(tensors: Mapping[str, torch.Tensor]) -> np.ndarray | str:
    return pack_tensors(tensors, f"tensors {digest_of(tensors)}")
