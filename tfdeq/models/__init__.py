"""Whole models around an equilibrium."""

from tfdeq.models.language_model import LanguageModel

__all__ = ["LanguageModel"]
