"""Whole models around an equilibrium."""

from tfdeq.models.adaptive_embedding import AdaptiveEmbedding
from tfdeq.models.adaptive_softmax import AdaptiveSoftmax
from tfdeq.models.explicit_language_model import ExplicitLanguageModel
from tfdeq.models.generation import Generation, generate
from tfdeq.models.language_model import LanguageModel
from tfdeq.models.multiscale_heads import (
    BranchMeans,
    ClassificationHead,
    DensePredictionHead,
)
from tfdeq.models.presets import list_presets
from tfdeq.models.reasoner import Reasoner
from tfdeq.models.tokenizers import ByteTokenizer, Tokenizer, WordTokenizer

__all__ = [
    "AdaptiveEmbedding",
    "AdaptiveSoftmax",
    "BranchMeans",
    "ByteTokenizer",
    "ClassificationHead",
    "DensePredictionHead",
    "ExplicitLanguageModel",
    "Generation",
    "LanguageModel",
    "Reasoner",
    "Tokenizer",
    "WordTokenizer",
    "generate",
    "list_presets",
]
