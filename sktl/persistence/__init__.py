"""Files without pickle: save, load, say what is inside, and publish."""

from sktl.persistence._card import make_card, push_to_hub
from sktl.persistence._files import load, save
from sktl.persistence._info import ModelInfo, inspect

__all__ = ["ModelInfo", "inspect", "load", "make_card", "push_to_hub", "save"]
