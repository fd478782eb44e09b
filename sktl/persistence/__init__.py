"""Files without pickle: save, load, and say what is inside."""

from sktl.persistence._files import load, save
from sktl.persistence._info import ModelInfo, inspect

__all__ = ["ModelInfo", "inspect", "load", "save"]
