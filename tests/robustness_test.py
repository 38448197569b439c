"""Tests of benchmarks.robustness: what scipy's matrix-free methods solve, ours solve as cheaply."""

import sys

import pytest

from benchmarks import robustness
from benchmarks.problems import PROBLEMS

EVALUATIONS, TOLERANCE = 1000, 1e-8
# Where the Jacobian of f − z is singular at the solution, the length of scipy's krylov is chance: 48 to
# 65 evaluations from starts that differ by 1e-14, to NewtonKrylov's 66 from each. Anderson needs 30.
OWN = dict.fromkeys(PROBLEMS, ("Broyden", "NewtonKrylov")) | {"Powell singular": ("Anderson",)}


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_scipy_solves_is_solved_in_as_many_evaluations(name):
    problem = PROBLEMS[name]()
    solvers = robustness.variants(EVALUATIONS, TOLERANCE)
    own = [robustness.solve(problem, solvers[key]) for key in OWN[name]]
    peers = [
        robustness.solve_with_scipy(problem, method, EVALUATIONS, TOLERANCE)
        for method in robustness.MATRIX_FREE_PEERS
    ]
    solved = [count for count in own if count is not None]
    assert solved, f"none of {OWN[name]} converged"
    best = min((count for count in peers if count is not None), default=None)
    if best is not None:
        assert min(solved) <= 1.2 * best


def test_an_interpreter_without_optimistix_is_named():
    with pytest.raises(ValueError, match=r"--peers_python=\S+ did not run Optimistix: .*No module"):
        robustness.solve_with_optimistix(sys.executable, EVALUATIONS, TOLERANCE)


def test_a_table_says_what_did_not_converge():
    text = robustness.table({"easy": {"a": 3, "b": None}, "hard": {"a": None, "b": 70}})
    assert text.splitlines()[2:] == ["| easy | 3 | – |", "| hard | – | 70 |"]
