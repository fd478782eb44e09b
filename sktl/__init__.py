"""Transfer learning that feels like scikit-learn.

:class:`PretrainedFeatureTransformer` turns images or texts into embeddings with a frozen pretrained network;
:class:`FineTuneClassifier` and :class:`FineTuneRegressor` put a new head on one, and train as much of it as their
``strategy`` says.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sktl import exceptions, strategies
    from sktl._costs import search_costs
    from sktl.backbones import list_backbones
    from sktl.export import export_onnx
    from sktl.finetune import FineTuneClassifier
    from sktl.persistence import inspect, load, push_to_hub, save
    from sktl.regression import FineTuneRegressor
    from sktl.scalar_mix import ScalarMix
    from sktl.text_statistics import TextStatistics
    from sktl.transformer import PretrainedFeatureTransformer

__version__ = version("sktl")

__all__ = [
    "FineTuneClassifier",
    "FineTuneRegressor",
    "PretrainedFeatureTransformer",
    "ScalarMix",
    "TextStatistics",
    "__version__",
    "exceptions",
    "export_onnx",
    "inspect",
    "list_backbones",
    "load",
    "push_to_hub",
    "save",
    "search_costs",
    "strategies",
]

_HOMES = {
    "FineTuneClassifier": "sktl.finetune",
    "FineTuneRegressor": "sktl.regression",
    "export_onnx": "sktl.export",
    "PretrainedFeatureTransformer": "sktl.transformer",
    "ScalarMix": "sktl.scalar_mix",
    "TextStatistics": "sktl.text_statistics",
    "inspect": "sktl.persistence",
    "list_backbones": "sktl.backbones",
    "load": "sktl.persistence",
    "push_to_hub": "sktl.persistence",
    "save": "sktl.persistence",
    "search_costs": "sktl._costs",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for, so that the command line can set up its process before torch."""
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in __all__:
        value = import_module(f"sktl.{name}")
    else:
        raise AttributeError(f"module 'sktl' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
