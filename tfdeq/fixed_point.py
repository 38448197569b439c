"""`fixed_point`: solve z = f(z, *args) with a chosen solver and a chosen gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfdeq import adjoints, solvers
from tfdeq.compaction import RowwiseFunction
from tfdeq.solution import Solution
from tfdeq.solvers.solver import require_positive_integer


def fixed_point(
    f: Callable[..., Any],
    z0: Any,
    args: Any = (),
    solver: str | solvers.Solver = "broyden",
    adjoint: str | adjoints.Adjoint = "implicit",
    tolerance: Any = None,
    max_steps: Any = None,
    *,
    iterates: Sequence[int] | None = None,
    batched_args: Sequence[int] | None = None,
    backward_callback: Callable[[Solution], None] | None = None,
) -> Solution | tuple[Solution, list[Any]]:
    """Solves z* = f(z*, *args) for every sample of a batch, differentiably.

    Each sample has its own answer, residual, number of steps and status, whoever shares its batch.
    Works in eager mode, in tf.function and with jit_compile=True. Gradients, of the order that the
    adjoint supports, flow to every floating tensor in args, and to nothing else: not to z0, and not
    to tensors that f merely closes over (trainable variables among them are an error).
    TensorFlow's loops and branches may hold a solve; of tf.vectorized_map a gradient can be taken inside
    of the mapped function only (from outside it is a LookupError, but for adjoints without a custom
    gradient: Unrolled with checkpointed=False).

    Args:
        f: (z, *args) -> like z; row b of the output depends on row b of z alone.
        z0: the start, a tensor or nest of tensors [B, ...], floating.
        args: tuple of the tensors (or nests of tensors) that a gradient should reach.
        solver: a solver object or its name. Default "broyden".
        adjoint: an adjoint object or its name. Default "implicit".
        tolerance: scalar or [B], > 0, relative residual at which a sample is done; may be a
            tensor. None: the solver's.
        max_steps: scalar or [B], >= 1, evaluations of f at most; may be a tensor. None: the
            solver's.
        iterates: numbers of evaluations, at least 1, in any order; return also what the solve had
            found after each, so that a loss may be put on several of them (fixed-point correction).
            Each has the gradient that the adjoint gives a fixed point there; adjoints that
            differentiate the whole solve cannot. None: no such states.
        batched_args: positions in args of what belongs to the samples, row by row: leaves [B, ...], or
            [1, ...] for what all samples share. Where they are named, and outside of XLA, samples that
            are done leave the batch: a batch then costs about the sum of its samples' steps, not its
            size times the most. None: the whole batch goes on until its last sample is done.
        backward_callback: receives the `Solution` of the backward solve when a first-order gradient
            is computed by solving; for metrics.

    Returns:
        A `Solution`; with iterates, that and a list of nests like z, one for each number: the z that
        a max_steps of that number returns.

    Raises:
        ValueError: unknown names, output unlike z0, settings out of range, trainable variables that
            are not in args.
        TypeError: states that are not floating point.

    Source: Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv:1909.01377; iterates: Bai, Geng, Savani,
        Kolter, Deep Equilibrium Optical Flow Estimation, arXiv:2204.08442.

    Example:
        >>> x = tf.constant([[1.0], [2.0]])
        >>> solution = fixed_point(lambda z, x: 0.5 * z + x, tf.zeros_like(x), (x,))
        >>> [round(float(value), 3) for value in solution.z[:, 0]]
        [2.0, 4.0]
    """
    if not isinstance(args, tuple | list):
        args = (args,)
    args = tf.nest.map_structure(tf.convert_to_tensor, tuple(args))
    if batched_args:
        wrong = [position for position in batched_args if not 0 <= position < len(args)]
        if wrong:
            raise ValueError(
                f"batched_args must be positions in args, 0 to {len(args) - 1}; received {wrong}."
            )
        f = RowwiseFunction(f, batched_args)
    adjoint, solver = adjoints.get(adjoint), solvers.get(solver)
    settings = (f, z0, args, solver, tolerance, max_steps, backward_callback)
    if iterates is None:
        return adjoint.solve(*settings)
    if not iterates:
        raise ValueError("iterates must name at least one number of evaluations; received none.")
    for number in iterates:
        require_positive_integer("iterates", number)
    return adjoint.solve_with_iterates(*settings, tuple(iterates))
