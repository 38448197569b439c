"""Tests of tfdeq.data.puzzles.maze."""

import collections

import numpy as np
import pytest

from tfdeq.data.puzzles import maze


def neighbours(place, grid):
    row, column = place
    for other in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
        if 0 <= other[0] < len(grid) and 0 <= other[1] < len(grid) and grid[other]:
            yield other


def searched(grid):
    """Returns the places of a shortest path, by breadth-first search, and the number of reached places."""
    start, goal = (tuple(np.argwhere(grid == token)[0]) for token in (2, 3))
    before, waiting = {start: None}, collections.deque([start])
    while waiting:
        place = waiting.popleft()
        for other in neighbours(place, grid):
            if other not in before:
                before[other] = place
                waiting.append(other)
    path = [goal]
    while before[path[-1]] is not None:
        path.append(before[path[-1]])
    return path, len(before)


@pytest.mark.parametrize("size", [3, 5, 9, 31])
def test_paths_are_those_of_a_search(size):
    mazes, paths = maze.make(12, size, 2)
    for grid, path in zip(mazes, paths, strict=True):
        assert (grid[::2, ::2] > 0).all()
        assert not grid[1::2, 1::2].any()
        assert (grid == 2).sum() == (grid == 3).sum() == 1
        assert (grid[::2, ::2] > 1).sum() == 2
        expected, reached = searched(grid)
        # A tree: all open places are reached, and there is one edge fewer than places.
        places = np.argwhere(grid)
        edges = sum(len(list(neighbours(tuple(place), grid))) for place in places) // 2
        assert reached == len(places) == edges + 1
        assert sorted(expected) == sorted(map(tuple, np.argwhere(path)))


def test_mazes_differ_in_all_that_is_random():
    mazes, paths = maze.make(800, 5, 0)
    starts = collections.Counter(np.argwhere(grid == 2)[0].tobytes() for grid in mazes)
    assert len(starts) == 9
    assert min(starts.values()) > 50  # 800 / 9 = 89, four deviations of 9
    assert len({(grid > 0).tobytes() for grid in mazes}) > 60  # of 192 trees of 3 × 3 cells
    assert len(set(paths.sum(axis=(1, 2)))) > 5


def test_large_mazes_have_long_paths():
    mazes, paths = maze.make(1, 201, 0)
    assert maze.check(mazes, paths).all()
    assert paths.sum() > 1000


def test_what_is_no_path_is_refused():
    grid = np.array(
        [[[2, 1, 1, 1, 1], [1, 0, 1, 0, 0], [1, 0, 1, 1, 3], [1, 0, 0, 0, 0], [1, 1, 1, 0, 1]]]
    )
    path = np.array(
        [[[1, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]]
    )
    assert maze.check(grid, path).tolist() == [True]
    for place, value in (
        ((0, 0), 0),
        ((2, 4), 0),
        ((1, 2), 0),
        ((0, 3), 1),
        ((4, 4), 1),
        ((1, 1), 1),
        ((0, 1), 2),
    ):
        wrong = path.copy()
        wrong[0][place] = value
        assert maze.check(grid, wrong).tolist() == [False], place
