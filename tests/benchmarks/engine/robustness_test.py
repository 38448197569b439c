"""Tests of benchmarks.engine.robustness: tfdeq solves what scipy's matrix-free methods solve, as cheaply."""

import sys

import pytest

from benchmarks.engine import robustness
from benchmarks.engine.problems import PROBLEMS

EVALUATIONS, TOLERANCE = 1000, 1e-8
# If the Jacobian of f − z is singular at the solution, the count of scipy's krylov is random: 48 to
# 65 evaluations from nine starts that differ by 1e-14. The test uses its count in
# docs/robustness.md.
BY_CHANCE = {("Powell singular", "krylov"): 56}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_what_scipy_solves_is_solved_in_as_many_evaluations(name):
    problem = PROBLEMS[name]()
    solvers = robustness.variants(EVALUATIONS, TOLERANCE)
    own = [robustness.solve(problem, solvers[key]) for key in ("Broyden", "NewtonKrylov")]
    peers = [
        BY_CHANCE.get((name, method))
        or robustness.solve_with_scipy(problem, method, EVALUATIONS, TOLERANCE)
        for method in robustness.PEERS
        if method != "hybr"  # builds the whole Jacobian
    ]
    solved = [count for count in own if count is not None]
    assert solved, "neither Broyden nor NewtonKrylov converged"
    best = min((count for count in peers if count is not None), default=None)
    if best is not None:
        assert min(solved) <= 1.2 * best


def test_an_interpreter_without_optimistix_is_named():
    with pytest.raises(ValueError, match=r"--peers_python=\S+ did not run Optimistix: .*No module"):
        robustness.solve_with_optimistix(sys.executable, EVALUATIONS, TOLERANCE)


def test_a_table_says_what_did_not_converge():
    text = robustness.table({"easy": {"a": 3, "b": None}, "hard": {"a": None, "b": 70}})
    assert text.splitlines()[2:] == ["| easy | 3 | – |", "| hard | – | 70 |"]
