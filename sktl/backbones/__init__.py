"""From a name, a file or a network to a frozen backbone that emits embeddings."""

from sktl.backbones._backbone import Backbone, build_from_recipe, reset_parameters, shareless_state
from sktl.backbones._fingerprint import fingerprint
from sktl.backbones._groups import layer_groups
from sktl.backbones._load import input_kind, list_backbones, load_backbone
from sktl.backbones._tokens import PADDING, takes_texts
from sktl.backbones._views import POOLINGS, FeatureView, make_view

__all__ = [
    "PADDING",
    "POOLINGS",
    "Backbone",
    "FeatureView",
    "build_from_recipe",
    "fingerprint",
    "input_kind",
    "layer_groups",
    "list_backbones",
    "load_backbone",
    "make_view",
    "reset_parameters",
    "shareless_state",
    "takes_texts",
]
