"""Ways to reuse a pretrained network, as values of ``strategy=``."""

from sktl.strategies._frozen import FeatureExtraction
from sktl.strategies._resolve import STRATEGIES, resolve_strategy
from sktl.strategies._tuned import FineTuning, FromScratch, LinearProbeThenFineTuning, PartialFineTuning
from sktl.strategies.base import Strategy

__all__ = [
    "STRATEGIES",
    "FeatureExtraction",
    "FineTuning",
    "FromScratch",
    "LinearProbeThenFineTuning",
    "PartialFineTuning",
    "Strategy",
    "resolve_strategy",
]
