"""What the estimators share that train a network."""

from sktl._finetuning._classifying import ClassifierHeads
from sktl._finetuning._fitting import FineTuner
from sktl._finetuning._heads import Heads
from sktl._finetuning._parameters import TRAINING_CONSTRAINTS

__all__ = ["TRAINING_CONSTRAINTS", "ClassifierHeads", "FineTuner", "Heads"]
