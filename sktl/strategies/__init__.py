"""Ways to reuse a pretrained network, as values of ``strategy=``."""

from sktl.strategies._adapters import BitFit, LoRA
from sktl.strategies._anchored import L2SP, WiseFT
from sktl.strategies._frozen import FeatureExtraction
from sktl.strategies._remembering import JointTraining, LearningWithoutForgetting
from sktl.strategies._resolve import STRATEGIES, resolve_strategy
from sktl.strategies._tuned import (
    FineTuning,
    FromScratch,
    GradualUnfreezing,
    LinearProbeThenFineTuning,
    PartialFineTuning,
)
from sktl.strategies.base import Batch, Start, Strategy

__all__ = [
    "L2SP",
    "STRATEGIES",
    "Batch",
    "BitFit",
    "FeatureExtraction",
    "FineTuning",
    "FromScratch",
    "GradualUnfreezing",
    "JointTraining",
    "LearningWithoutForgetting",
    "LinearProbeThenFineTuning",
    "LoRA",
    "PartialFineTuning",
    "Start",
    "Strategy",
    "WiseFT",
    "resolve_strategy",
]
