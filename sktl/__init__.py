"""Transfer learning that feels like scikit-learn.

:class:`PretrainedFeatureTransformer` turns images into embeddings with a frozen pretrained network;
:class:`FineTuneClassifier` puts a new head on one, and trains as much of it as its ``strategy`` says.
"""

from importlib.metadata import version

from sktl import exceptions, strategies
from sktl.backbones import list_backbones
from sktl.finetune import FineTuneClassifier
from sktl.transformer import PretrainedFeatureTransformer

__version__ = version("sktl")

__all__ = [
    "FineTuneClassifier",
    "PretrainedFeatureTransformer",
    "__version__",
    "exceptions",
    "list_backbones",
    "strategies",
]
