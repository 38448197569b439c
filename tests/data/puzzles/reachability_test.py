"""Tests of tfdeq.data.puzzles.reachability."""

import numpy as np
import pytest

from tfdeq.data.puzzles import reachability


def closed(graph):
    """Returns the answer by Warshall's transitive closure, in plain loops."""
    size = len(graph)
    leads = (graph == 1) | np.eye(size, dtype=bool)
    for middle in range(size):
        for row in range(size):
            if leads[row, middle]:
                leads[row] |= leads[middle]
    source = int(np.flatnonzero(np.diagonal(graph) == 3)[0])
    answer = (graph == 1) | np.eye(size, dtype=bool)
    answer[~leads[source]] = False
    return answer


@pytest.mark.parametrize("size", [6, 7, 12, 40])
def test_answers_are_those_of_a_transitive_closure(size):
    graphs, answers = reachability.make(15, size, 1)
    for graph, answer in zip(graphs, answers, strict=True):
        np.testing.assert_array_equal(answer, closed(graph))
        assert sorted(np.diagonal(graph))[-2:] == [2, 3]
        assert set(graph[~np.eye(size, dtype=bool)]) <= {0, 1}


@pytest.mark.parametrize("size", [6, 12, 30])
def test_grades_are_by_the_longest_distance(size):
    bounds = {"near": (1, size // 6), "middle": (size // 6 + 1, size // 3)}
    bounds["far"] = (size // 3 + 1, 2 * size // 3 - 1)
    assert list(bounds) == list(reachability.GRADES)
    for grade, (lowest, highest) in bounds.items():
        graphs, _ = reachability.make(100, size, 2, grade)
        farthest = reachability.distances(graphs).max(axis=1)
        assert set(farthest) == set(range(lowest, highest + 1)), grade


def test_about_half_of_the_nodes_can_be_reached():
    graphs, answers = reachability.make(600, 12, 3)
    reached = np.diagonal(answers, axis1=1, axis2=2) == 1
    assert 0.45 < reached.mean() < 0.6
    assert len(set(reached.sum(axis=1))) >= 4
    assert len(set(reachability.distances(graphs).max(axis=1))) == 7
    # Sparse, and a node's number of edges does not reveal whether it can be reached.
    edges = (graphs == 1).sum(axis=2)
    assert 1 < edges[reached].mean() < edges[~reached].mean() < 2
    sources = np.argwhere(np.diagonal(graphs, axis1=1, axis2=2) == 3)[:, 1]
    assert np.bincount(sources, minlength=12).min() > 20  # 600 / 12 = 50, four deviations of 7


def test_a_ring_that_nothing_leads_to_is_not_reached():
    graph = np.full((1, 6, 6), 0) + 2 * np.eye(6, dtype=int)
    graph[0, 0, 0] = 3
    graph[0, [0, 2, 3, 4], [1, 3, 4, 2]] = 1
    answer = np.zeros((1, 6, 6), int)
    answer[0, [0, 0, 1], [0, 1, 1]] = 1
    np.testing.assert_array_equal(reachability.solve(graph), answer)
    np.testing.assert_array_equal(reachability.distances(graph), [[0, 1, -1, -1, -1, -1]])
    wrong = answer.copy()
    wrong[0, [2, 3, 4, 2, 3, 4], [2, 3, 4, 3, 4, 2]] = (
        1  # supports itself: a fixed point, but not the least
    )
    assert reachability.check(np.repeat(graph, 2, 0), np.concatenate([answer, wrong])).tolist() == [
        True,
        False,
    ]
