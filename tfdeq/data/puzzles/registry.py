"""Puzzles by name. To add one, write a module with make, check and key, and add it to `PUZZLES`."""

from tfdeq.data.puzzles import files, maze, prefix_sums, reachability, sudoku
from tfdeq.data.puzzles.puzzle import Puzzle

PUZZLES = {
    "maze": Puzzle(
        name="maze",
        tokens=4,
        classes=2,
        rank=2,
        size=9,
        make=maze.make,
        check=maze.check,
        key=maze.key,
        augment=maze.augment,
        read=files.easy_to_hard_mazes,
    ),
    "prefix_sums": Puzzle(
        name="prefix_sums",
        tokens=2,
        classes=2,
        rank=1,
        size=32,
        make=prefix_sums.make,
        check=prefix_sums.check,
        key=prefix_sums.key,
        read=files.easy_to_hard_prefix_sums,
    ),
    "reachability": Puzzle(
        name="reachability",
        tokens=4,
        classes=2,
        rank=2,
        size=12,
        make=reachability.make,
        check=reachability.check,
        key=reachability.key,
        grades=reachability.GRADES,
        augment=reachability.augment,
    ),
    "sudoku": Puzzle(
        name="sudoku",
        tokens=10,
        classes=9,
        rank=2,
        size=9,
        make=sudoku.make,
        check=sudoku.check,
        key=sudoku.key,
        grades=sudoku.GRADES,
        augment=sudoku.augment,
        read=files.sudoku_extreme,
        boxes=True,
    ),
}
"""Puzzle's name -> `Puzzle`."""


def get(name: str) -> Puzzle:
    """Returns the puzzle task with a name; raises ValueError for an unknown name."""
    if name not in PUZZLES:
        raise ValueError(f"Unknown puzzle {name!r}. Known: {', '.join(sorted(PUZZLES))}.")
    return PUZZLES[name]
