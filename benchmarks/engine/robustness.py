"""Which problems each solver solves, and in how many evaluations, next to SciPy and Optimistix.

python -m benchmarks.engine.robustness [--peers_python=.venv-peers/bin/python] [--document=docs/robustness.md]

The same count is used for all: evaluations of f (and products with its Jacobian) until the first
iterate whose relative residual ‖f(z) − z‖ / ‖f(z)‖ is at most the tolerance, in float64.
"""

import functools
import json
import os
import subprocess
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks.engine.peers import client
from benchmarks.engine.problems import PROBLEMS, Problem
from benchmarks.results.tables import markdown_table
from tfdeq import solvers
from tfdeq.iteration import iterate
from tfdeq.programs import program

FLAGS = flags.FLAGS

PEERS = ("krylov", "broyden1", "anderson", "df-sane", "hybr")


EXPLANATION = """
# Which solver solves what

Made by `python -m benchmarks.engine.robustness --peers_python=.venv-peers/bin/python
--document=docs/robustness.md` (`make bench` makes that environment).

The table counts evaluations of f and products with its Jacobian until the first iterate whose relative
residual is at most {:g}, in float64. "–" means that a method had not reached it after {} of them, or had
stopped. `benchmarks/engine/problems.py` has the problems and their sources. SciPy's methods are those of
`scipy.optimize.root`. hybr and Optimistix's methods build the whole Jacobian, which counts as many
products as there are unknowns. Broyden keeps 200 updates.

Every problem that SciPy's matrix-free methods solve, Broyden or NewtonKrylov solves in at most 1.2 times
the evaluations of the best of them (`tests/benchmarks/engine/robustness_test.py`). On Powell's singular
function the count of SciPy's krylov depends on rounding; the test uses the count in the table. The same
holds for the problems that Optimistix solves, except Powell's badly scaled function: with two unknowns a
whole Jacobian costs no more than two products.

"""


def variants(evaluations: int, tolerance: float) -> dict[str, solvers.Solver]:
    """Returns the solvers of the table."""
    settings: dict[str, Any] = {"max_steps": evaluations, "tolerance": tolerance}
    return {
        "plain": solvers.FixedPointIteration(**settings),
        "Anderson": solvers.Anderson(**settings),
        "Anderson, safeguard": solvers.Anderson(**settings, safeguard=2.0),
        "Anderson I": solvers.Anderson(**settings, kind=1),
        "Broyden": solvers.Broyden(**settings, memory=200),
        "Broyden, safeguard": solvers.Broyden(**settings, memory=200, safeguard=100.0),
        "NewtonKrylov": solvers.NewtonKrylov(**settings, krylov_steps=60),
    }


def solve(problem: Problem, solver: solvers.Solver) -> int | None:
    """Returns the number of evaluations of a solver, or None if it does not converge."""
    start = tf.constant(problem.start[None])
    f = functools.partial(problem.f, tf.experimental.numpy)
    solution = tf.function(lambda z: iterate(f, z, solver), autograph=False)(start)
    return int(solution.steps[0]) if bool(solution.converged[0]) else None


def solve_with_scipy(
    problem: Problem, method: str, evaluations: int, tolerance: float
) -> int | None:
    """Returns the number of evaluations until scipy first meets the tolerance, or None.

    It is stopped there, because its own criteria differ between methods.
    """
    from scipy import optimize

    compiled = tf.function(functools.partial(problem.f, tf.experimental.numpy), autograph=False)
    count = 0

    def g(z):
        nonlocal count
        count += 1
        f_z = compiled(tf.constant(z[None])).numpy()[0]
        length = np.linalg.norm(f_z)
        if np.linalg.norm(f_z - z) <= tolerance * length:
            raise _Solved
        if count >= evaluations:
            raise _Spent
        return f_z - z

    options = {"hybr": {"xtol": 1e-15, "maxfev": evaluations}}.get(method, {"fatol": 1e-300})
    if method == "df-sane":
        options = {"fatol": 1e-300, "ftol": 0.0, "maxfev": evaluations}
    elif method != "hybr":
        options |= {"maxiter": evaluations}
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            optimize.root(g, problem.start, method=method, options=options)
    except _Solved:
        return count
    except (_Spent, ValueError, np.linalg.LinAlgError):
        return None
    return None


class _Solved(Exception):
    """The tolerance is met."""


class _Spent(Exception):
    """The evaluations are used up."""


def solve_with_optimistix(
    python: str, evaluations: int, tolerance: float
) -> dict[str, dict[str, int | None]]:
    """Returns problem -> method -> evaluations, computed by the interpreter with Optimistix."""
    command = [
        python,
        "-m",
        "benchmarks.engine.peers.optimistix_roots",
        str(tolerance),
        str(evaluations),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=client.ROOT, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"--peers_python={python} did not run Optimistix: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    evaluations: int, tolerance: float, peers_python: str | None
) -> dict[str, dict[str, int | None]]:
    """Returns problem -> method -> evaluations, or None if it did not converge."""
    optimistix = {}
    if peers_python:
        optimistix = solve_with_optimistix(peers_python, evaluations, tolerance)
    results: dict[str, dict[str, int | None]] = {}
    for name, make in PROBLEMS.items():
        problem = make()
        row = {key: solve(problem, s) for key, s in variants(evaluations, tolerance).items()}
        for method in PEERS:
            row[f"scipy {method}"] = solve_with_scipy(problem, method, evaluations, tolerance)
        row |= {f"Optimistix {key}": count for key, count in optimistix.get(name, {}).items()}
        results[name] = row
    return results


def table(results: dict[str, dict[str, int | None]]) -> str:
    """Returns the evaluations as a Markdown table; – if a method did not converge."""
    columns = list(next(iter(results.values())))
    rows = [
        (name, *("–" if row[column] is None else row[column] for column in columns))
        for name, row in results.items()
    ]
    return markdown_table(["problem", *columns], rows)


def main() -> None:
    text = table(measure(FLAGS.evaluations, FLAGS.tolerance, FLAGS.peers_python))
    print(text)
    if FLAGS.document:
        os.makedirs(os.path.dirname(FLAGS.document) or ".", exist_ok=True)
        with open(FLAGS.document, "w", encoding="utf-8") as file:
            file.write(EXPLANATION.format(FLAGS.tolerance, FLAGS.evaluations).lstrip() + text)


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    flags.DEFINE_float("tolerance", 1e-8, "Relative residual that counts as solved. Default: 1e-8.")
    flags.DEFINE_integer("evaluations", 1000, "Evaluations at most. Default: 1000.")
    flags.DEFINE_string("peers_python", None, "Interpreter that has Optimistix; none: without it.")
    flags.DEFINE_string("document", None, "Markdown file to write the table to.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
