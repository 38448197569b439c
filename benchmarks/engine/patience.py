"""What patience saves and what it loses, on solves whose residual seems to stagnate.

python -m benchmarks.engine.patience [--document=docs/patience.md] [--longest=4096]

Evaluations (and products with the Jacobian) of every solver until it stops, for affine maps of spectral
radius 0.5 to 1.5, for an answer that travels one place per application, and for the cells of the
weight-tying theorem; by default, and with patience=12.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfdeq
from benchmarks.engine.problems import affine
from benchmarks.results.tables import markdown_table
from tfdeq import solvers
from tfdeq.cells import weight_tied
from tfdeq.programs import program

FLAGS = flags.FLAGS

EXPLANATION = """
# What patience costs

Made by `python -m benchmarks.engine.patience --document=docs/patience.md`.

The tables count evaluations of f, and products with its Jacobian, until a sample stops. A number without
a letter means CONVERGED; m means MAX_STEPS, s STAGNATED, n NON_FINITE. By default a sample stops before
its budget only if that is certain. Where the result with `patience=12` differs, it follows after a
stroke. With `patience=12` a sample is STAGNATED after twelve iterates in which the residual has not
fallen by 0.1 %.

"""
AFFINE = """
## Affine maps

f(z) = zA + b with 40 unknowns, in float64, tolerance 1e-8, at most 1,000 evaluations, three seeds each
(`benchmarks/engine/problems.py`).

"""
TRAVELLING = """
## An answer that travels

A binary increment of T bits that are all ones. The carry moves one place per application, so T + 1
applications are needed, and the residual stays constant meanwhile. float32, tolerance 1e-5, at most 4 T
evaluations.

"""
STACKS = """
## The cells of the weight-tying theorem

L dense layers of width 8 as one cell (`tfdeq.cells.weight_tied`), whose activations grow or shrink by the
orthogonal weights' gain; float32, tolerance 1e-6, at most 4 L. Plain iteration is exact after L.

"""
_LETTERS = {
    tfdeq.Status.CONVERGED: "",
    tfdeq.Status.MAX_STEPS: "m",
    tfdeq.Status.STAGNATED: "s",
    tfdeq.Status.NON_FINITE: "n",
}
# (layers, gain of their weights, activation)
STACK_CASES = ((20, 1.0, "relu"), (20, 2.0, "linear"), (24, 2.0, "relu"), (30, 1.3, "linear"))


def variants(budget: int, tolerance: float, **settings: Any) -> dict[str, solvers.Solver]:
    """Returns name -> solver, for the columns of the tables."""
    settings = {"max_steps": budget, "tolerance": tolerance, **settings}
    return {
        "plain": solvers.FixedPointIteration(**settings),
        "Anderson": solvers.Anderson(**settings),
        "Anderson, safeguard": solvers.Anderson(**settings, safeguard=2.0),
        "Broyden": solvers.Broyden(**settings, memory=200),
        "Reversible": solvers.Reversible(**settings),
        "NewtonKrylov": solvers.NewtonKrylov(**settings, krylov_steps=60),
        "GMRES": solvers.GMRES(**settings, krylov_steps=60),
    }


def outcomes(
    solve: Callable[..., tfdeq.Solution],
    cases: Sequence[Sequence[Any]],
    budget: int,
    tolerance: float,
) -> list[list[str]]:
    """Returns a row for each case: each solver's outcome without and, after a slash, with patience.

    Args:
        solve: (solver, *tensors of a case) -> solution of one sample. cases: tensors of equal shapes,
            so that each solver is traced only once.
    """
    columns = []
    impatient = variants(budget, tolerance, patience=12)
    for name, solver in variants(budget, tolerance).items():
        found, other = (
            [_text(function(*case)) for case in cases]
            for function in (
                tf.function(functools.partial(solve, one), autograph=False)
                for one in (solver, impatient[name])
            )
        )
        pairs = zip(found, other, strict=True)
        columns.append([one if one == two else f"{one} / {two}" for one, two in pairs])
    return [list(row) for row in zip(*columns, strict=True)]


def _text(solution: tfdeq.Solution) -> str:
    return f"{int(solution.steps[0])}{_LETTERS[tfdeq.Status(int(solution.status[0]))]}"


def increment(z: dict[str, tf.Tensor], bits: tf.Tensor) -> dict[str, tf.Tensor]:
    """sum_i = bit_i xor carry_i, carry_{i+1} = bit_i and carry_i; the carry into the first is 1."""
    carry = tf.concat([tf.ones_like(bits[:, :1]), z["carry"][:, :-1]], axis=1)
    return {"sum": bits + carry - 2.0 * bits * carry, "carry": bits * carry}


def affine_rows() -> list[list[str]]:
    """Returns a row for each map and seed."""
    names, cases = [], []
    for radius in (0.5, 0.9, 0.99, 1.5):
        for normal in (True, False):
            for seed in range(3):
                problem = affine(radius, normal, seed=seed)
                b = problem.f(np, np.zeros([1, 40]))
                names.append([f"{radius:g}{'' if normal else ', not normal'}", seed])
                cases.append([tf.constant(problem.f(np, np.eye(40)) - b), tf.constant(b)])

    def solve(solver, a, b):
        f = lambda z, a, b: tf.matmul(z, a) + b  # noqa: E731
        return tfdeq.fixed_point(f, tf.zeros_like(b), (a, b), solver)

    rows = outcomes(solve, cases, 1000, 1e-8)
    return [[*name, *row] for name, row in zip(names, rows, strict=True)]


def travelling_rows(longest: int) -> list[list[str]]:
    """Returns a row for each length up to the longest."""

    def solve(solver, bits):
        z0 = {"sum": tf.zeros_like(bits), "carry": tf.zeros_like(bits)}
        return tfdeq.fixed_point(increment, z0, (bits,), solver)

    return [
        [f"{length:,}", *outcomes(solve, [[tf.ones([1, length])]], 4 * length, 1e-5)[0]]
        for length in (64, 512, 4096)
        if length <= longest
    ]


def stack_rows() -> list[list[str]]:
    """Returns a row for each stack of layers."""
    rows = []
    for count, gain, activation in STACK_CASES:
        keras.utils.set_random_seed(0)
        layers = [
            keras.layers.Dense(
                8,
                activation,
                use_bias=False,
                kernel_initializer=keras.initializers.Orthogonal(gain),
            )
            for _ in range(count)
        ]
        x = tf.random.stateless_normal([1, 8], [1, 2])
        cell = weight_tied(layers)
        tfdeq.DEQLayer(cell)(x)  # builds it

        def solve(solver, x, cell=cell):
            layer = tfdeq.DEQLayer(cell, solver, convergence_metrics=False)
            return layer(x, return_solution=True)

        found = outcomes(solve, [[x]], 4 * count, 1e-6)[0]
        rows.append([f"{count}, {activation}, {gain:g}", *found])
    return rows


def document(longest: int) -> str:
    """Returns the tables as Markdown."""
    names = list(variants(1, 1.0))
    return "".join(
        [
            EXPLANATION.lstrip(),
            AFFINE.lstrip(),
            markdown_table(["spectral radius", "seed", *names], affine_rows()),
            TRAVELLING,
            markdown_table(["T", *names], travelling_rows(longest)),
            STACKS,
            markdown_table(["layers, activation, gain", *names], stack_rows()),
        ]
    )


def main() -> None:
    text = document(FLAGS.longest)
    print(text)
    if FLAGS.document:
        with open(FLAGS.document, "w", encoding="utf-8") as file:
            file.write(text)


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_integer("longest", 4096, "Longest of the travelling answers. Default: 4,096.")
    flags.DEFINE_string("document", None, "Markdown file to write the tables to.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
