"""The residuals that solves reach if the cell computes in half precision.

python -m benchmarks.engine.half_precision

With a tolerance that cannot be reached, it prints the lowest residual, the evaluations until the solver
stopped, and the reason, for the worst sample.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfdeq
from benchmarks.results.tables import markdown_table
from tfdeq import solvers
from tfdeq.cells import DenseCell, TransformerCell
from tfdeq.programs import program

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")
SOLVERS = ("fixed_point_iteration", "anderson", "broyden", "newton_krylov")
BUDGET = 200


def make_cells(width: int, length: int) -> dict[str, tuple[keras.layers.Layer, tuple[int, ...]]]:
    """Returns name -> a new cell under the current dtype policy, and the shape of a sample."""
    return {
        "dense": (DenseCell(width, contraction=0.9), (width,)),
        "Transformer": (
            TransformerCell(width, 4, length, recurrent_scale=0.5),
            (length, width),
        ),
    }


def measure(
    policy: str, solver: str, width: int = 64, length: int = 32, patience: int | None = None
) -> dict[str, Any]:
    """Returns cell -> the worst residual, the most evaluations and the names of the statuses."""
    results = {}
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)  # a cell draws the seeds of its weights when it is created
    try:
        for name, (cell, shape) in make_cells(width, length).items():
            settings = {"max_steps": BUDGET, "tolerance": 1e-12, "patience": patience}
            layer = tfdeq.DEQLayer(cell, solvers.get(solver, **settings))
            x = np.random.default_rng(0).normal(size=(16, *shape)).astype("float32")
            solve = tf.function(lambda x, layer=layer: layer(x, return_solution=True))
            solution = solve(x)
            results[name] = {
                "residual": float(tf.reduce_max(solution.residual)),
                "steps": int(tf.reduce_max(solution.steps)),
                "status": sorted({tfdeq.Status(s).name for s in solution.status.numpy()}),
            }
    finally:
        keras.config.set_dtype_policy(before)
    return results


def main() -> None:
    rows = [
        (
            *(cell, policy, solver.replace("_", " "), f"{row['residual']:.1e}"),
            *(row["steps"], ", ".join(row["status"])),
        )
        for policy in POLICIES
        for solver in SOLVERS
        for cell, row in measure(policy, solver).items()
    ]
    print(
        markdown_table(("cell", "policy", "solver", "residual", "evaluations", "status"), rows),
        end="",
    )


if __name__ == "__main__":
    program.run(main)
