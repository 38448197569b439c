"""Residual against evaluations and time for every solver; writes the plots of docs/solvers.md.

python -m benchmarks.engine.solver_curves --workdir=runs/curves --plots=docs

Each solver solves the benchmark's Transformer cell, from z = x, with budgets of 1, 2, 3, …, compiled by
XLA. The figures for each budget are the mean over samples of the relative residual of the returned
state, and the median time of several calls. The solvers alternate.
"""

import os
import statistics
import time
from typing import Any

import matplotlib
import numpy as np
import tensorflow as tf
from absl import flags

import tfdeq
from benchmarks.engine import engine_cases
from benchmarks.engine.peers.tfdeq_worker import apply_cell, inject
from benchmarks.results.tables import markdown_table
from tfdeq import solvers
from tfdeq.programs import program
from tfdeq.programs.workdir import write_json

matplotlib.use("Agg")
from matplotlib import pyplot

FLAGS = flags.FLAGS

# Okabe and Ito's colours; every line also has its own marker.
STYLES = {
    "fixed_point_iteration": ("#000000", "o"),
    "reversible": ("#CC79A7", "v"),
    "anderson": ("#0072B2", "s"),
    "broyden": ("#D55E00", "^"),
    "newton_krylov": ("#009E73", "D"),
}
# Far below float32's precision: no solver stops before it uses up its budget or stagnates.
_UNREACHABLE = 1e-12


def make_solves(sizes: dict[str, Any], most: int) -> dict[str, Any]:
    """Returns name -> compiled solve of the Transformer cell: scalar int32 budget -> residuals [B]."""
    arrays = {k: tf.constant(v) for k, v in engine_cases.make_arrays(sizes).items()}
    weights = {k[2:]: v for k, v in arrays.items() if k[:2] == "w/"}
    x = arrays["x"]

    def solve(name, budget):
        solver = solvers.get(name, max_steps=most, tolerance=_UNREACHABLE)
        args = (inject("transformer", weights, x), x, weights)
        f = lambda z, *args: apply_cell(sizes, z, *args)  # noqa: E731
        return tfdeq.fixed_point(f, x, args, solver, max_steps=budget).residual

    return {
        name: tf.function(
            lambda budget, name=name: solve(name, budget), autograph=False, jit_compile=True
        )
        for name in STYLES
    }


def measure(sizes: dict[str, Any], most: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Returns name -> {"evaluations", "residual", "seconds"}, with one value per budget."""
    solves = make_solves(sizes, most)
    budgets = list(range(1, most + 1))
    seconds = {name: [[] for _ in budgets] for name in solves}
    residuals = {
        name: [float(np.mean(solve(tf.constant(k)))) for k in budgets]
        for name, solve in solves.items()
    }
    for _ in range(rounds):
        for index, budget in enumerate(budgets):
            for name, solve in solves.items():
                start = time.perf_counter()
                solve(tf.constant(budget)).numpy()
                seconds[name][index].append(time.perf_counter() - start)
    return {
        name: {
            "evaluations": budgets,
            "residual": residuals[name],
            "seconds": [statistics.median(values) for values in seconds[name]],
        }
        for name in solves
    }


def draw(curves: dict[str, dict[str, list[float]]], across: str, label: str, path: str) -> None:
    """Draws the residual on a logarithmic scale against "evaluations" or "seconds"."""
    figure = pyplot.figure(figsize=(7.5, 4.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        color, marker = STYLES[name]
        axes.plot(
            curve[across],
            curve["residual"],
            color=color,
            marker=marker,
            markersize=4,
            label=name.replace("_", " "),
        )
    axes.set(xlabel=label, ylabel="relative residual, mean over samples", yscale="log")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


def table(curves: dict[str, dict[str, list[float]]], targets: list[float]) -> str:
    """Returns evaluations and milliseconds until each residual as a Markdown table."""
    rows = []
    for name, curve in curves.items():
        cells = []
        for target in targets:
            reached = [i for i, value in enumerate(curve["residual"]) if value <= target]
            if reached:
                index = reached[0]
                milliseconds = 1e3 * curve["seconds"][index]
                cells.append(f"{curve['evaluations'][index]}, {milliseconds:.0f} ms")
            else:
                cells.append("–")
        rows.append((name.replace("_", " "), *cells))
    return markdown_table(["solver", *(f"to {target:g}" for target in targets)], rows)


def main() -> None:
    sizes = (engine_cases.QUICK_CASES if FLAGS.quick else engine_cases.CASES)["transformer"]
    curves = measure({**sizes, "gain": FLAGS.gain}, FLAGS.budget, FLAGS.rounds)
    os.makedirs(FLAGS.workdir, exist_ok=True)
    write_json(os.path.join(FLAGS.workdir, "solver_curves.json"), curves)
    plots = FLAGS.plots or FLAGS.workdir
    draw(curves, "evaluations", "evaluations", os.path.join(plots, "solvers_evaluations.png"))
    draw(curves, "seconds", "seconds", os.path.join(plots, "solvers_time.png"))
    print(table(curves, [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]))


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    flags.DEFINE_string("workdir", None, "Folder for the figures.", required=True)
    flags.DEFINE_string("plots", None, "Folder for the plots. Default: --workdir.")
    flags.DEFINE_integer("budget", 40, "The largest budget, evaluations. Default: 40.")
    flags.DEFINE_integer("rounds", 5, "Timed calls of each budget. Default: 5.")
    flags.DEFINE_float("gain", 0.9, "Scale of the recurrent weights. Default: 0.9.")
    flags.DEFINE_bool("quick", False, "Tiny sizes: shows that everything works.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
