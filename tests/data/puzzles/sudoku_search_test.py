"""Tests of compilation in tfdeq.data.puzzles.sudoku_search; sudoku_test.py tests the search."""

import numpy as np

from tfdeq.data.puzzles import sudoku_search


def test_compiled_code_is_kept_nowhere_where_it_cannot_be():
    # For such a function Numba finds no file, just as it finds no folder to write to in a read-only
    # installation.
    names = {}
    exec("def double(x):\n    return 2 * x\n", names)
    double = sudoku_search._compiled("i8(i8)")(names["double"])
    assert double(21) == 42
    assert double.nopython_signatures


def test_a_seed_makes_its_puzzle_whatever_else_is_made():
    def made(seeds):
        boards, solutions = np.zeros((2, len(seeds), 81), np.int64)
        guesses = np.zeros(len(seeds), np.int64)
        stops = np.zeros(len(seeds), np.int64)
        sudoku_search.make_boards(seeds, stops, 0, 2**62, boards, solutions, guesses)
        return boards

    seeds = np.arange(5, dtype=np.uint64)
    np.testing.assert_array_equal(made(seeds)[3:], made(seeds[3:]))
