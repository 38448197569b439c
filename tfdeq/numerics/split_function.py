"""The parts of a function with a splitting, on the state's matrix."""

from typing import Any

import tensorflow as tf

from tfdeq.compaction import BoundFunction
from tfdeq.numerics.function_evaluation import evaluate
from tfdeq.numerics.state_layout import StateLayout
from tfdeq.solvers.solver import Solver
from tfdeq.solvers.splitting import Prepared, Splitting


def prepared_splitting(f: Any, layout: StateLayout, solver: Solver) -> Prepared | None:
    """Returns what the solver computes from the splitting of f; None if it evaluates f as it is.

    f: z -> like z; a `BoundFunction` may have a splitting.

    Raises:
        ValueError: for a solver that requires a splitting, if f has none.
    """
    if not solver.uses_splitting:
        return None
    splitting = f.splitting() if isinstance(f, BoundFunction) else None
    if splitting is not None:
        return tf.nest.map_structure(
            lambda leaf: tf.stop_gradient(leaf) if tf.is_tensor(leaf) else leaf,
            solver.prepare(_on_matrices(splitting, layout), layout.dtype),
        )
    if solver.needs_splitting:
        raise ValueError(
            f"{type(solver).__name__} needs a cell that says what its affine part is, by a method "
            "splitting(x), as the monotone cells of tfdeq.cells do; received one that "
            "does not. Use such a cell, or a solver that only evaluates f, such as tfdeq.Anderson."
        )
    return None


def evaluate_split(
    f: BoundFunction, layout: StateLayout, z: tf.Tensor, prepared: Prepared
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns f(z) and the affine part of f at z, whose projection is f(z); [B, D] each."""
    affine_z = evaluate(f.splitting().affine, layout, z)
    return prepared.projection(affine_z), affine_z


def _on_matrices(splitting: Splitting, layout: StateLayout) -> Splitting:
    """Returns the same splitting with maps on [B, D]."""

    def flat(function):
        return lambda matrix: layout.flatten(function(layout.unflatten(matrix)))

    return splitting._replace(
        affine=flat(splitting.affine),
        projection=flat(splitting.projection),
        resolvent=lambda step_size: flat(splitting.resolvent(step_size)),
    )
