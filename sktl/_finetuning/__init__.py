"""What the estimators share that train a network."""

from sktl._finetuning._classifying import ClassifierHeads
from sktl._finetuning._fitting import FineTuner
from sktl._finetuning._heads import Heads
from sktl._finetuning._parameters import TRAINING_CONSTRAINTS
from sktl._finetuning._undo import as_before_on_failure

__all__ = ["TRAINING_CONSTRAINTS", "ClassifierHeads", "FineTuner", "Heads", "as_before_on_failure"]
