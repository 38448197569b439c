"""Whole models around an equilibrium."""

from tfdeq.models.generation import Generation, generate
from tfdeq.models.language_model import LanguageModel

__all__ = ["Generation", "LanguageModel", "generate"]
