"""The description of a puzzle task: how puzzles are generated, transformed and checked."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Puzzle(NamedTuple):
    """One puzzle task. `*places` stands for one or two dimensions of the puzzle's size.

    Example:
        >>> from tfdeq.data.puzzles import get
        >>> maze = get("maze")
        >>> inputs, targets = maze.make(3, 9, 0, None)
        >>> inputs.shape, targets.dtype, maze.check(inputs, targets).tolist()
        ((3, 9, 9), dtype('int32'), [True, True, True])
    """

    name: str
    tokens: int  # an input place holds 0 … tokens - 1
    classes: int  # a target place holds 0 … classes - 1
    rank: int  # dimensions of the places: 1 or 2
    size: int  # the default size in training
    # (count, size, seed, grade) -> (inputs, targets), each [count, *places] int32; grade None: the
    # task's own mixture. A larger count begins with the puzzles of a smaller one.
    make: Callable[[int, int, int, str | None], tuple[np.ndarray, np.ndarray]]
    # (inputs [N, *places], answers [N, *places]) -> [N] bool: which answers are correct according
    # to the rules.
    check: Callable[[np.ndarray, np.ndarray], np.ndarray]
    # (inputs [N, *places], targets [N, *places]) -> [N] uint64: equal for equal puzzles, and for
    # puzzles that `augment` can turn into one another.
    key: Callable[[np.ndarray, np.ndarray], np.ndarray]
    grades: Sequence[str] = ()  # names of the levels of difficulty, easiest first
    # (inputs [B, *places] int32, targets [B, *places] int32, seed [2] int32) -> the same puzzles,
    # each row under its own random symmetry; made of stateless TensorFlow operations. None: no
    # symmetries.
    augment: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None
    # (path, largest number of puzzles to read) -> (inputs, targets) of a public set in the user's
    # files; None: no public set is known.
    read: Callable[[str, int], tuple[np.ndarray, np.ndarray]] | None = None
    boxes: bool = (
        False  # whether boxes of √n × √n places form groups, in addition to rows and columns
    )


def checked_grade(task: str, grade: str | None, grades: Sequence[str]) -> str | None:
    """Returns the grade; raises ValueError for one that the task does not have."""
    if grade is not None and grade not in grades:
        known = f"one of {', '.join(grades)}, or None" if grades else "None, since it has no grades"
        raise ValueError(f"The grade of {task} must be {known}; received {grade!r}.")
    return grade


def checked_size(task: str, size: int, good: bool, which: str) -> int:
    """Returns the size; raises ValueError for an invalid one, with the valid sizes."""
    if not good:
        raise ValueError(f"The size of {task} must be {which}; received {size}.")
    return size
