"""What the estimators share that train a network."""

from sktl._finetuning._fitting import FineTuner
from sktl._finetuning._parameters import TRAINING_CONSTRAINTS

__all__ = ["TRAINING_CONSTRAINTS", "FineTuner"]
