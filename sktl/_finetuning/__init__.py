"""What the estimators share that train a network."""

from sktl._finetuning._classes import ClassTargets
from sktl._finetuning._fitting import FineTuner
from sktl._finetuning._heads import ClassifierHeads
from sktl._finetuning._parameters import TRAINING_CONSTRAINTS
from sktl._finetuning._undo import as_before_on_failure

__all__ = ["TRAINING_CONSTRAINTS", "ClassTargets", "ClassifierHeads", "FineTuner", "as_before_on_failure"]
