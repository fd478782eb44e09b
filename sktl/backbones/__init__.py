"""From a name, a file or a network to a frozen backbone that emits embeddings."""

from sktl.backbones._backbone import (
    Backbone,
    build_from_recipe,
    pack_module,
    reset_parameters,
    unpack_module,
)
from sktl.backbones._fingerprint import fingerprint
from sktl.backbones._groups import layer_groups
from sktl.backbones._load import adapt_backbone, input_kind, list_backbones, load_backbone
from sktl.backbones._original import OriginalHead, class_names
from sktl.backbones._reference import ReferredHead, add_low_rank, check_referable, digest_of, refer, refer_head
from sktl.backbones._stored import WeightsShelf, current_shelf, pack_tensors, unpack_tensors, weights_on
from sktl.backbones._tokens import PADDING, takes_texts
from sktl.backbones._views import POOLINGS, FeatureView, example_input, make_view

__all__ = [
    "PADDING",
    "POOLINGS",
    "Backbone",
    "FeatureView",
    "OriginalHead",
    "ReferredHead",
    "WeightsShelf",
    "adapt_backbone",
    "add_low_rank",
    "build_from_recipe",
    "check_referable",
    "class_names",
    "current_shelf",
    "digest_of",
    "example_input",
    "fingerprint",
    "input_kind",
    "layer_groups",
    "list_backbones",
    "load_backbone",
    "make_view",
    "pack_module",
    "pack_tensors",
    "refer",
    "refer_head",
    "reset_parameters",
    "takes_texts",
    "unpack_module",
    "unpack_tensors",
    "weights_on",
]
