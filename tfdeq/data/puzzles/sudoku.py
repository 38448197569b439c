"""Sudoku of 9 × 9 with a unique solution, graded by the number of guesses of a search.

The search first fills the most constrained blank, which has the fewest digits that row, column and box
allow (for a tie, the first in its own list), and tries the digits in ascending order. A blank with a
single digit, a naked single, is filled without a guess; no other rule is used, not even hidden singles.
A guess is a digit tried in a blank with several. Guesses are counted over the whole search, which finds
the solution and shows that it is unique; so a puzzle needs either none or at least 2.
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeq.data.puzzles.numbers import below, mixed, raw_numbers
from tfdeq.data.puzzles.puzzle import checked_grade, checked_size

# name -> (number of givens, or 0 for minimal puzzles; smallest number of guesses; largest)
_GRADES = {
    "one_blank": (80, 0, 0),
    "no_guess": (30, 0, 0),
    "few": (0, 1, 10),
    "many": (0, 11, 50),
    "hardest": (0, 51, 2**62),
}
GRADES = tuple(_GRADES)


class Boards(NamedTuple):
    """Puzzles with their solutions and difficulty."""

    inputs: np.ndarray  # [N, 9, 9] int32: 1 … 9, or 0 for a blank
    targets: np.ndarray  # [N, 9, 9] int32: digit - 1 of every cell
    guesses: np.ndarray  # [N] int64


class Solutions(NamedTuple):
    """The result of a search."""

    answers: np.ndarray  # [N, 9, 9] int32: digit - 1 of every cell in the last solution found
    count: np.ndarray  # [N] int64: solutions found; a search may stop before it finds all
    guesses: np.ndarray  # [N] int64


def make(
    count: int, size: int = 9, seed: int = 0, grade: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Makes puzzles of one grade, or the mixture for training.

    "one_blank" is a complete grid with one blank cell; "no_guess" has 30 givens and needs no guess. The
    others are minimal, and need 1 to 10 guesses ("few"), 11 to 50 ("many") or more ("hardest").

    Args:
        count: N. size: 9. seed: any 64-bit integer. grade: one of `GRADES`; None: see `mixture`.

    Returns:
        (puzzles, solutions), both [N, 9, 9] int32: 0 for a blank, else the digit; digit - 1 everywhere.

    Raises:
        ValueError: for another size or grade.
    """
    checked_size("sudoku", size, size == 9, "9")
    if checked_grade("sudoku", grade, GRADES) is None:
        return mixture(count, seed)
    stop, lowest, highest = _GRADES[grade]
    seeds = raw_numbers(f"sudoku {grade}", seed).random_raw(count)
    boards = _made(seeds, np.full(count, stop), lowest, highest)
    return boards.inputs, boards.targets


def mixture(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes puzzles for training: of every seven, two have 36 givens or more, two 30, three are minimal.

    "36 or more" means 36 … 60, equally likely. A puzzle is minimal if it has several solutions after
    any of its givens is removed.

    Args:
        count: N. seed: any 64-bit integer.

    Returns:
        (puzzles, solutions) as from `make`.
    """
    raw = raw_numbers("sudoku", seed).random_raw(2 * count).reshape(count, 2)
    kind = np.arange(count) % 7
    stops = np.select([kind < 2, kind < 4], [36 + below(raw[:, 1], 25), np.full(count, 30)], 0)
    boards = _made(raw[:, 0], stops, 0, 2**62)
    return boards.inputs, boards.targets


def make_minimal(count: int, seed: int) -> Boards:
    """Makes minimal puzzles without selection, of all grades, with the guesses that each needs.

    Givens of a random complete grid are removed in random order if the solution stays unique. Each is
    tried once, which is enough.

    Args:
        count: N. seed: any 64-bit integer.
    """
    seeds = raw_numbers("sudoku minimal", seed).random_raw(count)
    return _made(seeds, np.zeros(count, np.int64), 0, 2**62)


def solve(inputs: np.ndarray, limit: int = 2) -> Solutions:
    """Solves puzzles and counts solutions up to a limit; a limit of 2 shows whether a solution is unique.

    Args:
        inputs: [N, 9, 9] integers, 0 for a blank. limit: number of solutions to stop at.

    Raises:
        ValueError: for another shape, other digits, or a digit that occurs twice in a row, column or
            box.
    """
    boards = np.ascontiguousarray(inputs, np.int64)
    if boards.ndim != 3 or boards.shape[1:] != (9, 9) or ((boards < 0) | (boards > 9)).any():
        raise ValueError(
            f"Sudoku must be integers 0 … 9 of shape [N, 9, 9]; received shape {boards.shape}"
            + (f", values {boards.min()} … {boards.max()}." if boards.size else ".")
        )
    clashes = (_counts(boards)[..., 1:] > 1).any(axis=(1, 2))
    if clashes.any():
        raise ValueError(
            "A row, column or box of a Sudoku has each digit once at most; received "
            f"{clashes.sum()} boards with one twice, the first at index {clashes.argmax()}."
        )
    count = len(boards)
    answers = np.zeros((count, 81), np.int64)
    found, guesses = np.zeros(count, np.int64), np.zeros(count, np.int64)
    _search().solve_boards(boards.reshape(count, 81), limit, answers, found, guesses)
    return Solutions((answers.reshape(-1, 9, 9) - 1).astype(np.int32), found, guesses)


def check(inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Returns [N] bool: whether each row, column and box has every digit once, and givens are unchanged."""
    inputs, answers = np.asarray(inputs), np.asarray(answers)
    valid = ((answers >= 0) & (answers < 9)).all(axis=(1, 2))
    once = (_counts(np.where(valid[:, None, None], answers, 0) + 1)[..., 1:] == 1).all(axis=(1, 2))
    return valid & once & ((inputs == 0) | (inputs == answers + 1)).all(axis=(1, 2))


def augment(inputs: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies a random symmetry of Sudoku to each puzzle.

    These are permutations of the digits, of the bands, of the rows in each band, of the stacks, of the
    columns in each stack, and transposition: 9! · 6⁴ · 6⁴ · 2 in all.

    Args:
        inputs, targets: [B, 9, 9] int32. seed: [2] int32.

    Returns:
        Inputs and targets of the symmetric puzzles.
    """
    rows = tf.shape(inputs)[0]
    raw = tf.random.stateless_uniform(
        [rows, 34], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    digits = tf.argsort(raw[:, :9], stable=True)
    row_order, column_order = _line_order(raw[:, 9:21]), _line_order(raw[:, 21:33])
    turned = raw[:, 33, None, None] < 0
    with_blank = tf.concat([tf.zeros([rows, 1], tf.int32), digits + 1], axis=1)
    results = []
    for x, names in ((inputs, with_blank), (targets, digits)):
        x = tf.where(turned, tf.transpose(x, [0, 2, 1]), x)
        x = tf.gather(x, row_order, axis=1, batch_dims=1)
        x = tf.gather(x, column_order, axis=2, batch_dims=1)
        results.append(tf.gather(names, x, batch_dims=1))
    return results[0], results[1]


def key(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns [N] uint64, equal for solution grids that are symmetric to one another.

    Two rows of a band define a permutation, which maps each digit of one row to the digit in the same
    column of the other. No symmetry changes its cycle lengths; the same holds for two columns of a
    stack. The key is computed from all cycle lengths independently of their order, so it is equal for
    symmetric grids. It is almost never equal for others; if it is, two different puzzles count as the
    same. The key does not depend on the givens: puzzles of the same grid have equal keys.

    Args:
        inputs: [N, 9, 9], not used. targets: [N, 9, 9], digit - 1 of every cell.
    """
    del inputs
    grids = np.asarray(targets, np.int64)
    rows, columns = _line_colours(grids), _line_colours(grids.transpose(0, 2, 1))
    for _ in range(3):
        cells = mixed(rows[:, :, None] + columns[:, None, :])
        by_digit = [np.where(grids == digit, cells, 0).sum(axis=(1, 2)) for digit in range(9)]
        digits = mixed(np.stack(by_digit, axis=1))
        boxes = mixed(cells.reshape(-1, 3, 3, 3, 3).sum(axis=(2, 4), dtype=np.uint64))
        boxes = boxes.repeat(3, axis=1).repeat(3, axis=2)
        names = np.take_along_axis(digits, grids.reshape(-1, 81), axis=1).reshape(-1, 9, 9)
        cells = mixed(cells + 3 * names + 7 * boxes)
        rows, columns = mixed(cells.sum(axis=2)), mixed(cells.sum(axis=1))
    return mixed(rows.sum(axis=1) + columns.sum(axis=1))


def _line_colours(grids: np.ndarray) -> np.ndarray:
    """[N, 9] uint64: a hash of each row's cycle lengths with the other rows of its band."""
    places = np.argsort(grids, axis=2)  # the position of each digit in each row
    colours = np.zeros((len(grids), 9), np.uint64)
    for row in range(9):
        for other in (row // 3 * 3 + (row + 1) % 3, row // 3 * 3 + (row + 2) % 3):
            step = np.take_along_axis(grids[:, other], places[:, row], axis=1)
            # Cycle lengths follow from the numbers of digits that return after 1, 2, … 8 steps.
            at, returns = step, np.zeros(len(grids), np.int64)
            for _ in range(8):
                at = np.take_along_axis(step, at, axis=1)
                returns = 10 * returns + (at == np.arange(9)).sum(axis=1)
            colours[:, row] += mixed(returns)
    return mixed(colours)


def _line_order(raw: tf.Tensor) -> tf.Tensor:
    """[B, 12] random integers -> [B, 9], an order of nine lines that permutes bands and their lines."""
    bands = tf.argsort(raw[:, :3], stable=True)
    lines = tf.argsort(tf.reshape(raw[:, 3:], [-1, 3, 3]), stable=True)
    return tf.reshape(3 * bands[:, :, None] + lines, [-1, 9])


def _counts(boards: np.ndarray) -> np.ndarray:
    """[N, 27, 10] int64: how often each of 0 … 9 occurs in each row, column and box."""
    boxes = boards.reshape(-1, 3, 3, 3, 3).transpose(0, 1, 3, 2, 4).reshape(-1, 9, 9)
    units = np.concatenate([boards, boards.transpose(0, 2, 1), boxes], axis=1)
    return (units[..., None] == np.arange(10)).sum(axis=2)


def _made(seeds: np.ndarray, stops: np.ndarray, lowest: int, highest: int) -> Boards:
    count = len(seeds)
    boards, solutions = np.zeros((2, count, 81), np.int64)
    guesses = np.zeros(count, np.int64)
    seeds, stops = np.ascontiguousarray(seeds, np.uint64), np.ascontiguousarray(stops, np.int64)
    _search().make_boards(seeds, stops, lowest, highest, boards, solutions, guesses)
    puzzles = boards.reshape(-1, 9, 9).astype(np.int32)
    return Boards(puzzles, (solutions.reshape(-1, 9, 9) - 1).astype(np.int32), guesses)


def _search() -> ModuleType:
    from tfdeq.data.puzzles import sudoku_search  # imports Numba, and compiles

    return sudoku_search
