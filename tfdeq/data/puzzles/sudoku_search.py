"""Compiled search for Sudoku: complete grids, puzzles with a unique solution, and guesses.

Importing this module imports Numba and compiles, which takes a second, or ten without a cache. A board
is [81] int64, row after row: 1 … 9, or 0 for a blank. A mask has bit d - 1 for the digit d.
"""

from collections.abc import Callable

import numba
import numpy as np

_BITS = np.array([bin(mask).count("1") for mask in range(512)])
_BOX = np.array([cell // 27 * 3 + cell % 9 // 3 for cell in range(81)])


def _compiled(signature: str) -> Callable[[Callable], Callable]:
    """Compiles a function for one signature; otherwise Numba would compile anew for each literal argument."""

    def decorate(function: Callable) -> Callable:
        # Private functions are called only by compiled ones, and need no wrapper for Python.
        private = function.__name__.startswith("_")
        options = {"no_cpython_wrapper": private, "no_cfunc_wrapper": True}
        try:
            return numba.njit(signature, cache=True, **options)(function)
        except RuntimeError:  # no folder for the cache, as in a read-only installation
            return numba.njit(signature, **options)(function)

    return decorate


@_compiled("i8(u8[::1], i8)")
def _draw(state, bound):
    """Returns an integer in [0, bound); advances state [1] uint64 (SplitMix64)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.int64((z >> np.uint64(33)) % np.uint64(bound))


@_compiled("i8[::1](u8[::1], i8)")
def _permutation(state, length):
    order = np.empty(length, np.int64)
    for place in range(length):
        order[place] = place
    for last in range(length - 1, 0, -1):
        other = _draw(state, last + 1)
        order[last], order[other] = order[other], order[last]
    return order


@_compiled("i8(i8[::1], i8)")
def _candidates(used, cell):
    """Returns the mask of the digits that row, column and box allow in a cell; used: [27] masks."""
    return 511 & ~(used[cell // 9] | used[9 + cell % 9] | used[18 + _BOX[cell]])


@_compiled("void(i8[::1], i8, i8)")
def _turn(used, cell, digit):
    """Marks a digit as used in the cell's row, column and box, or as free again."""
    bit = 1 << (digit - 1)
    used[cell // 9] ^= bit
    used[9 + cell % 9] ^= bit
    used[18 + _BOX[cell]] ^= bit


@_compiled("i8[::1](i8[::1])")
def _usage(board):
    used = np.zeros(27, np.int64)
    for cell in range(81):
        if board[cell]:
            _turn(used, cell, board[cell])
    return used


@_compiled("i8(i8[::1], i8, i8, i8[::1])")
def _choose(cells, depth, blanks, used):
    """Moves the first most constrained of cells[depth:blanks] to the front; returns its mask."""
    best, fewest = depth, 10
    for index in range(depth, blanks):
        count = _BITS[_candidates(used, cells[index])]
        if count < fewest:
            best, fewest = index, count
            if count <= 1:
                break
    cells[depth], cells[best] = cells[best], cells[depth]
    return _candidates(used, cells[depth])


@_compiled("i8(i8, u8[::1])")
def _pick(mask, state):
    """Returns a digit of a mask: the lowest, or a random one if there is a state."""
    skip = _draw(state, _BITS[mask]) if state.size else 0
    for _ in range(skip):
        mask &= mask - 1
    return _BITS[(mask & -mask) - 1] + 1


@_compiled("Tuple((i8[::1], i8, i8))(i8[::1], i8, i8, i8, u8[::1])")
def _search(board, first, first_mask, limit, state):
    """Depth-first search over the most constrained blank.

    Args:
        first, first_mask: the first blank and its digits; -1: the most constrained blank.
        limit: number of solutions to stop at.
        state: [1] uint64, for digits in random order; [0]: ascending order.

    Returns:
        The last solution [81], the number of solutions, and the number of digits tried where there was
        a choice.
    """
    used, board, solution = _usage(board), board.copy(), board.copy()
    cells, left, choice = np.zeros(81, np.int64), np.zeros(81, np.int64), np.zeros(81, np.int64)
    blanks = solutions = guesses = depth = 0
    for cell in range(81):
        if board[cell] == 0:
            cells[blanks] = cell
            if cell == first:  # to the front
                cells[0], cells[blanks] = cell, cells[0]
            blanks += 1
    if blanks == 0:
        return solution, 1, 0
    left[0] = first_mask if first >= 0 else _choose(cells, 0, blanks, used)
    choice[0] = _BITS[left[0]] > 1
    while depth >= 0:
        cell = cells[depth]
        if board[cell]:  # the digit tried before
            _turn(used, cell, board[cell])
            board[cell] = 0
        if left[depth] == 0:
            depth -= 1
            continue
        board[cell] = _pick(left[depth], state)
        left[depth] ^= 1 << (board[cell] - 1)
        guesses += choice[depth]
        _turn(used, cell, board[cell])
        if depth + 1 < blanks:
            depth += 1
            left[depth] = _choose(cells, depth, blanks, used)
            choice[depth] = _BITS[left[depth]] > 1
        else:
            for other in range(81):
                solution[other] = board[other]
            solutions += 1
            if solutions == limit:
                break
    return solution, solutions, guesses


@_compiled("i8[::1](u8[::1])")
def _lines(state):
    """Returns a random order of nine lines, which permutes bands and the lines in each."""
    order, bands = np.empty(9, np.int64), _permutation(state, 3)
    for place in range(3):
        lines = _permutation(state, 3)
        for line in range(3):
            order[3 * place + line] = 3 * bands[place] + lines[line]
    return order


@_compiled("i8[::1](u8[::1])")
def _complete_grid(state):
    """Returns a grid: random boxes on the diagonal, a random search for the rest, random symmetries."""
    board = np.zeros(81, np.int64)
    for box in range(3):
        digits = _permutation(state, 9)
        for place in range(9):
            board[30 * box + place // 3 * 9 + place % 3] = digits[place] + 1
    board, _, _ = _search(board, -1, 0, 1, state)
    rows, columns, turned = _lines(state), _lines(state), _draw(state, 2)
    grid = np.empty(81, np.int64)
    for cell in range(81):
        row, column = rows[cell // 9], columns[cell % 9]
        grid[cell] = board[9 * column + row] if turned else board[9 * row + column]
    return grid


@_compiled("i8(i8[::1], i8, u8[::1])")
def _take_away(board, stop, state):
    """Blanks cells of a complete grid in random order if the solution stays unique.

    Returns the number of givens: stop, or more if no other given can be removed.
    """
    givens, ascending, order = 81, np.empty(0, np.uint64), _permutation(state, 81)
    for place in range(81):
        if givens == stop:
            break
        cell = order[place]
        digit = board[cell]
        board[cell] = 0
        others = _candidates(_usage(board), cell) & ~(1 << (digit - 1))
        solutions = 0
        if others:
            _, solutions, _ = _search(board, cell, others, 1, ascending)
        if solutions:
            board[cell] = digit
        else:
            givens -= 1
    return givens


@_compiled("void(u8[::1], i8[::1], i8, i8, i8[:, ::1], i8[:, ::1], i8[::1])")
def make_boards(seeds, stops, lowest, highest, boards, solutions, guesses):
    """Makes puzzles with a unique solution, each from its own seed.

    Args:
        seeds: [N] uint64.
        stops: [N] int64, number of givens to stop at; 0: minimal puzzles.
        lowest, highest: allowed numbers of guesses; see `solve_boards`.
        boards, solutions: [N, 81] int64, to be filled.
        guesses: [N] int64, to be filled.
    """
    state, ascending = np.empty(1, np.uint64), np.empty(0, np.uint64)
    for index in range(seeds.size):
        state[0] = seeds[index]
        while True:
            grid = _complete_grid(state)
            board = grid.copy()
            givens = _take_away(board, stops[index], state)
            _, _, tried = _search(board, -1, 0, 2, ascending)
            reached = stops[index] == 0 or givens == stops[index]
            if reached and lowest <= tried and tried <= highest:
                break
        guesses[index] = tried
        for cell in range(81):
            boards[index, cell] = board[cell]
            solutions[index, cell] = grid[cell]


@_compiled("void(i8[:, ::1], i8, i8[:, ::1], i8[::1], i8[::1])")
def solve_boards(boards, limit, solutions, found, guesses):
    """Solves puzzles.

    Guesses are the digits tried in cells with several possible digits, over the whole search.

    Args:
        boards: [N, 81] int64; no digit may occur twice in a row, column or box.
        limit: number of solutions to stop at.
        solutions: [N, 81] int64, to be filled with the last one found.
        found, guesses: [N] int64, to be filled with the numbers of solutions and guesses.
    """
    board, ascending = np.empty(81, np.int64), np.empty(0, np.uint64)
    for index in range(len(boards)):
        for cell in range(81):
            board[cell] = boards[index, cell]
        solution, found[index], guesses[index] = _search(board, -1, 0, limit, ascending)
        for cell in range(81):
            solutions[index, cell] = solution[cell]
