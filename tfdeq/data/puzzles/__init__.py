"""Generated puzzles, one task per file: models learn on small ones and solve large ones."""

from tfdeq.data.puzzles.prepared import puzzle_examples
from tfdeq.data.puzzles.puzzle import Puzzle
from tfdeq.data.puzzles.registry import PUZZLES, get

__all__ = ["PUZZLES", "Puzzle", "get", "puzzle_examples"]
