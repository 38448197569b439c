"""Mazes: the only way from a start to a goal."""

import numpy as np
import tensorflow as tf

from tfdeq.data.puzzles.numbers import below, raw_numbers, row_keys
from tfdeq.data.puzzles.puzzle import checked_grade, checked_size

WALL, OPEN, START, GOAL = range(4)


def make(
    count: int, size: int, seed: int, grade: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Makes mazes without loops, by randomised depth-first search from the start, and their paths.

    Cells are at even coordinates. Places between two cells are open or wall; places between four cells
    and everything outside are wall. Start and goal are two different random cells.

    Args:
        count: N. size: n, odd, at least 3. seed: any 64-bit integer. grade: None.

    Returns:
        (mazes, paths), both [N, n, n] int32. Mazes: 0 wall, 1 open, 2 start, 3 goal. Paths: 1 on the
        path from start to goal, including both, else 0.

    Raises:
        ValueError: for another size, or a grade.

    Source: Schwarzschild et al., arXiv:2106.04537, section 3.2.
    """
    checked_grade("maze", grade, ())
    checked_size("maze", size, size >= 3 and size % 2 == 1, "an odd number of 3 or more")
    stream = raw_numbers("maze", seed, size)
    mazes = np.zeros((count, size, size), np.int32)
    paths = np.zeros((count, size, size), np.int32)
    cells = ((size + 1) // 2) ** 2
    for maze, path in zip(mazes, paths, strict=True):
        _fill(maze, path, stream.random_raw(cells + 2))
    return mazes, paths


def _fill(maze: np.ndarray, path: np.ndarray, raw: np.ndarray) -> None:
    """Writes a maze and its path; takes one raw number per cell, and two for start and goal."""
    side = (len(maze) + 1) // 2
    first, second = below(raw[:2], np.array([side * side, side * side - 1]))
    start, goal = int(first), int(second + (second >= first))
    parents = _spanning_tree(side, start, (raw[2:] >> np.uint64(32)).tolist())
    # The place between a cell and its parent is the mean of their places.
    cells = np.arange(side * side)
    row, column = cells // side, cells % side
    up, left = np.divmod(np.array(parents), side)
    maze[2 * row, 2 * column] = OPEN
    maze[row + up, column + left] = OPEN
    maze[2 * row[start], 2 * column[start]] = START
    maze[2 * row[goal], 2 * column[goal]] = GOAL
    cell = goal
    while cell != start:
        path[2 * row[cell], 2 * column[cell]] = 1
        path[row[cell] + up[cell], column[cell] + left[cell]] = 1
        cell = parents[cell]
    path[2 * row[start], 2 * column[start]] = 1


def _spanning_tree(side: int, root: int, numbers: list[int]) -> list[int]:
    """Returns the parent of each cell, and of the root itself; numbers: [side²], 32-bit."""
    wide = side + 2  # a border of visited cells makes checks of the edges unnecessary
    taken = [False] * (wide * wide)
    for index in range(wide):
        taken[index] = taken[-1 - index] = taken[index * wide] = taken[index * wide - 1] = True
    parents = [0] * (wide * wide)
    cell = (root // side + 1) * wide + root % side + 1
    parents[cell], taken[cell] = cell, True
    stack = [cell]
    number = iter(numbers)
    while stack:
        cell = stack[-1]
        free = [
            other for other in (cell - wide, cell - 1, cell + 1, cell + wide) if not taken[other]
        ]
        if not free:
            stack.pop()
            continue
        other = free[next(number) * len(free) >> 32]
        parents[other], taken[other] = cell, True
        stack.append(other)
    inner = (row * wide + column for row in range(1, side + 1) for column in range(1, side + 1))
    return [(p // wide - 1) * side + p % wide - 1 for p in (parents[cell] for cell in inner)]


def check(inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Returns [N] bool: which answers are exactly a path from start to goal.

    That means: all marked places are open, start and goal are marked and each have one marked
    neighbour, and every other marked place has two. Since a maze has no loops, this is a single path.
    """
    inputs, marked = np.asarray(inputs), np.asarray(answers) == 1
    padded = np.pad(marked, ((0, 0), (1, 1), (1, 1))).astype(np.int32)
    neighbours = (
        padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    )
    ends = (inputs == START) | (inputs == GOAL)
    wanted = np.where(ends, 1, 2)
    fits = np.where(marked, (inputs != WALL) & (neighbours == wanted), ~ends)
    valid = (np.asarray(answers) == 0) | marked
    return (fits & valid).all(axis=(1, 2))


def augment(inputs: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Rotates and reflects each maze at random, in one of 8 ways.

    Args:
        inputs, targets: [B, n, n] int32. seed: [2] int32.

    Returns:
        Inputs and targets of the symmetric mazes.
    """
    ways = tf.random.stateless_uniform(
        [3, tf.shape(inputs)[0], 1, 1], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    turned = []
    for x in (inputs, targets):
        x = tf.where(ways[0] < 0, tf.transpose(x, [0, 2, 1]), x)
        x = tf.where(ways[1] < 0, tf.reverse(x, [1]), x)
        turned.append(tf.where(ways[2] < 0, tf.reverse(x, [2]), x))
    return turned[0], turned[1]


def key(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns [N] uint64, equal for mazes that are the same up to rotations and reflections."""
    del targets
    images = [
        np.rot90(x, turns, (1, 2))
        for x in (np.asarray(inputs), np.asarray(inputs)[:, :, ::-1])
        for turns in range(4)
    ]
    return np.min([row_keys(image) for image in images], axis=0)
