"""Puzzles to learn on small ones and solve on large ones: one task a file, all of it generated."""

from tfdeq.data.puzzles.prepared import puzzle_examples
from tfdeq.data.puzzles.puzzle import Puzzle
from tfdeq.data.puzzles.registry import PUZZLES, get

__all__ = ["PUZZLES", "Puzzle", "get", "puzzle_examples"]
