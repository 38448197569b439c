"""Tests of tfdeq.data.puzzles.sudoku and its compiled search."""

import numpy as np
import pytest

from tfdeq.data.puzzles import sudoku

UNITS = [
    *([(line, place) for place in range(9)] for line in range(9)),
    *([(place, line) for place in range(9)] for line in range(9)),
    *([(3 * (box // 3) + p // 3, 3 * (box % 3) + p % 3) for p in range(9)] for box in range(9)),
]
PEERS = {
    (row, column): {cell for unit in UNITS if (row, column) in unit for cell in unit}
    - {(row, column)}
    for row in range(9)
    for column in range(9)
}


def searched(board, limit=2):
    """Returns (solutions, guesses) by plain recursion over the first most constrained blank."""
    options = {
        cell: sorted(set(range(1, 10)) - {board[peer] for peer in PEERS[cell]})
        for cell in PEERS
        if not board[cell]
    }
    if not options:
        return [board.copy()], 0
    cell = min(options, key=lambda blank: len(options[blank]))
    solutions, guesses = [], 0
    for digit in options[cell]:
        guesses += len(options[cell]) > 1
        board[cell] = digit
        found, more = searched(board, limit - len(solutions))
        board[cell] = 0
        solutions, guesses = solutions + found, guesses + more
        if len(solutions) >= limit:
            break
    return solutions, guesses


@pytest.mark.parametrize("grade", [None, "no_guess", "few"])
def test_solutions_are_the_only_ones(grade):
    inputs, targets = sudoku.make(7, 9, 4, grade)
    for board, target in zip(inputs, targets, strict=True):
        solutions, _ = searched(board.copy())
        assert len(solutions) == 1
        np.testing.assert_array_equal(solutions[0] - 1, target)
        for unit in UNITS:
            assert sorted(target[cell] for cell in unit) == list(range(9))


def test_minimal_puzzles_need_every_given():
    boards = sudoku.make_minimal(40, 1)
    givens = (boards.inputs > 0).sum(axis=(1, 2))
    assert 17 <= givens.min() < givens.max() <= 32
    for board in boards.inputs:
        cells = np.argwhere(board)
        fewer = np.repeat(board[None], len(cells), axis=0)
        fewer[np.arange(len(cells)), cells[:, 0], cells[:, 1]] = 0
        assert (sudoku.solve(fewer, limit=2).count == 2).all()
    solutions, _ = searched(fewer[0].copy())
    assert len(solutions) == 2


def test_the_search_finds_what_plain_recursion_finds():
    boards = sudoku.make_minimal(6, 2)
    found = sudoku.solve(boards.inputs)
    np.testing.assert_array_equal(found.count, 1)
    np.testing.assert_array_equal(found.answers, boards.targets)
    np.testing.assert_array_equal(found.guesses, boards.guesses)
    empty = sudoku.solve(np.zeros((1, 9, 9), int), limit=5)
    assert empty.count.tolist() == [5]
    complete = sudoku.solve(boards.targets + 1)
    assert complete.count.tolist() == [1] * 6
    assert not complete.guesses.any()
    impossible = boards.inputs[:1].copy()  # a blank without a possible digit
    impossible[:] = 0
    impossible[0, 0, :8] = np.arange(1, 9)
    impossible[0, 1, 8] = 9
    assert sudoku.solve(impossible).count.tolist() == [0]


def test_guesses_without_any_are_naked_singles_alone():
    boards = sudoku.make_minimal(300, 3)
    none = boards.inputs[boards.guesses == 0]
    assert len(none)
    for board in [*none[:2], *sudoku.make(3, 9, 0, "no_guess")[0]]:
        board, filled = board.copy(), True
        while filled:
            filled = False
            for cell in zip(*np.nonzero(board == 0), strict=True):
                left = set(range(1, 10)) - {board[peer] for peer in PEERS[cell]}
                if len(left) == 1:
                    board[cell], filled = left.pop(), True
        assert (board > 0).all()


def test_grades_are_by_guesses():
    for grade, lowest, highest in (
        ("one_blank", 0, 0),
        ("no_guess", 0, 0),
        ("few", 1, 10),
        ("many", 11, 50),
        ("hardest", 51, np.inf),
    ):
        inputs, _ = sudoku.make(12, 9, 5, grade)
        guesses = sudoku.solve(inputs).guesses
        assert ((guesses >= lowest) & (guesses <= highest)).all(), grade
        givens = (inputs > 0).sum(axis=(1, 2))
        if grade in ("one_blank", "no_guess"):
            assert (givens == (80 if grade == "one_blank" else 30)).all()


def test_the_mixture_has_sevenths():
    givens = (sudoku.mixture(70, 0)[0] > 0).sum(axis=(1, 2)).reshape(10, 7)
    assert (givens[:, :2] >= 36).all()
    assert len(np.unique(givens[:, :2])) > 8
    assert (givens[:, 2:4] == 30).all()
    assert (givens[:, 4:] < 30).all()


def test_grids_are_varied():
    _, targets = sudoku.make(1800, 9, 6, "one_blank")
    counts = np.stack([(targets == digit).sum(axis=0) for digit in range(9)])
    np.testing.assert_allclose(counts, 200, atol=70)  # five deviations of 13
    assert len(set(sudoku.key(None, targets).tolist())) == 1800  # no two of them symmetric
    # For a pair of rows in a band, the cycles of the permutation have all possible lengths.
    rows = {tuple(sorted(cycles(row, other))) for row, other in targets[:, :2]}
    assert len(rows) == 8


def cycles(row, other):
    step, seen = dict(zip(row.tolist(), other.tolist(), strict=True)), set()
    for first in range(9):
        length, at = 0, first
        while at not in seen:
            seen.add(at)
            at, length = step[at], length + 1
        if length:
            yield length


def test_answers_are_checked_by_the_rules():
    inputs, targets = sudoku.make(2, 9, 8, "few")
    swapped = (targets + 1) % 9  # a complete grid with other digits than the givens
    assert sudoku.check(np.zeros_like(inputs), swapped).all()
    assert not sudoku.check(inputs, swapped).any()
    assert not sudoku.check(inputs, np.zeros_like(targets)).any()


def test_boards_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"received shape \(81,\), values 0 … 0"):
        sudoku.solve(np.zeros(81, int))
    with pytest.raises(ValueError, match="values 0 … 12"):
        sudoku.solve(np.full((1, 9, 9), 12) * np.eye(9, dtype=int))
    twice = np.zeros((3, 9, 9), int)
    twice[1, 0, :2] = 5
    with pytest.raises(ValueError, match="1 boards with one twice, the first at index 1"):
        sudoku.solve(twice)
