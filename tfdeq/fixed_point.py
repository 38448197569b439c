"""`fixed_point`: solve z = f(z, *args) with a chosen solver and a chosen gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq import adjoints, solvers
from tfdeq.adjoints.adjoint import SolveSettings
from tfdeq.compaction import RowwiseFunction
from tfdeq.numerics.limits import Limits
from tfdeq.rows import choose, finite_rows, rows_of, with_rows, without_rows
from tfdeq.solution import Solution, Status
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
    patience: Any = None,
    absolute_tolerance: Any = None,
    backward_tolerance: Any = None,
    backward_max_steps: Any = None,
    iterates: Sequence[int] | None = None,
    trace: bool = False,
    batched_args: Sequence[int] | None = None,
    compaction: bool = True,
    exclude_non_finite: bool = False,
    throw: bool = False,
    callback: Callable[[Solution], None] | None = None,
    backward_callback: Callable[[Solution], None] | None = None,
) -> Solution:
    """Solves z* = f(z*, *args) for every sample of a batch, differentiably.

    Each sample has its own answer, residual, number of steps and status, which do not depend on the
    rest of its batch. This works in eager mode, in tf.function and with jit_compile=True.
    Gradients, of the order that the adjoint supports, flow to every floating or complex tensor in
    args and to nothing else: not to z0. If f uses a trainable variable or a watched tensor that is
    not in args, an error is raised. TensorFlow's loops and branches may contain a solve. With
    tf.vectorized_map a gradient can only be taken inside the mapped function. From outside it
    raises a LookupError, except for adjoints without a custom gradient (Unrolled with
    checkpointed=False).

    Args:
        f: (z, *args) -> like z; row b of the output depends only on row b of z.
        z0: the start, a tensor or nest of tensors [B, ...], floating.
        args: tuple of the tensors (or nests of tensors) that a gradient should reach.
        solver: a solver object or its name. Default "broyden".
        adjoint: an adjoint object or its name. Default "implicit".
        tolerance: scalar or [B], > 0, relative residual at which a sample has converged; may be a
            tensor. None: the solver's.
        max_steps: scalar or [B], >= 1, largest number of evaluations of f; may be a tensor. None: the
            solver's.
        patience: scalar or [B], >= 1, iterates without progress after which a sample is
            STAGNATED; see `Solver`. None: the solver's.
        absolute_tolerance: scalar or [B], >= 0, value of ‖f(z) − z‖₂ at which a sample has also converged.
            None: the solver's.
        backward_tolerance, backward_max_steps: the same for the backward solve. None: those of the
            adjoint's own solver, if it has one; otherwise the tolerance of the forward solve, and
            the larger of this call's max_steps and the solver's.
        iterates: numbers of evaluations, at least 1, in any order. The solution's `iterates` are
            the states that the solve had found after each, so that a loss can use several of them
            (fixed-point correction). Each has the gradient that the adjoint gives to a fixed point
            there; adjoints that differentiate the whole solve do not support this. Solvers that use products
            with the Jacobian solve once more for each. None: no such states.
        trace: whether the solution's `trace` keeps the residual of every iterate, for plots.
        batched_args: positions in args of the arguments that have a row for each sample: leaves
            [B, ...], or [1, ...] for values that all samples share. If given, and outside of XLA,
            samples that have converged leave the batch. A batch then costs about the sum of its
            samples' steps, instead of its size times the largest number of steps. Also, a sample
            with NaN or infinity in one of these arguments is NON_FINITE, whatever f returns. None:
            all samples are evaluated until the last one has converged.
        compaction: whether samples that have converged leave the batch, if batched_args is given.
        exclude_non_finite: whether to exclude samples whose batched_args are not finite from every
            gradient. Their z is z0, their status NON_FINITE, and their NaN does not reach arguments that
            they share with other samples. False: their NaN reaches the gradients.
        throw: raise tf.errors.InvalidArgumentError unless every sample has converged. In a graph this is
            an assertion, which XLA omits.
        callback: receives the `Solution` of the forward solve; for metrics.
        backward_callback: receives the `Solution` of the backward solve when a first-order gradient
            is computed by solving; for metrics.

    Returns:
        A `Solution`.

    Raises:
        ValueError: for unknown names, an output unlike z0, settings out of range, or trainable
            variables or watched tensors that are not in args.
        TypeError: for states that are not floating point.
        tf.errors.InvalidArgumentError: for a batched argument whose number of rows differs from
            z0's; with throw, for a sample that has not converged.

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
    _check_positions(batched_args, args)
    f = RowwiseFunction(f, batched_args, compaction) if batched_args else f
    adjoint, solver = adjoints.get(adjoint), solvers.get(solver)
    limits = Limits(tolerance, max_steps, patience, absolute_tolerance)
    settings = SolveSettings(
        solver=solver,
        limits=limits,
        backward_limits=_backward_limits(
            adjoint, solver, limits, backward_tolerance, backward_max_steps
        ),
        backward_callback=backward_callback,
        iterates=_checked_numbers(iterates),
        trace=trace,
    )
    finite = None
    if batched_args:
        rows = rows_of(tf.convert_to_tensor(tf.nest.flatten(z0)[0]))
        args = tuple(
            with_rows("A batched argument of f", arg, rows) if position in batched_args else arg
            for position, arg in enumerate(args)
        )
        finite = finite_rows([args[position] for position in batched_args], rows)
    if finite is not None and exclude_non_finite:
        args = tuple(
            without_rows(arg, finite) if position in batched_args else arg
            for position, arg in enumerate(args)
        )
    solution = adjoint.solve(f, z0, args, settings)
    if finite is not None:
        solution = mark_non_finite(solution, finite, z0 if exclude_non_finite else None)
    if throw:
        solution = require_converged(solution)
    if callback is not None:
        callback(solution)
    return solution


def require_converged(solution: Solution) -> Solution:
    """Returns the solution; raises an error unless all its samples have converged.

    Raises:
        tf.errors.InvalidArgumentError: in eager mode, and when a graph runs. XLA omits the
            assertion.
    """
    message = (
        "Not every sample has converged; status of each (0 CONVERGED, 1 MAX_STEPS, 2 STAGNATED, "
        "3 NON_FINITE) and residual follow. tfdeq.describe(status) says what to change."
    )
    everything = tf.reduce_all(solution.converged)
    check = tf.debugging.Assert(everything, [message, solution.status, solution.residual], 64)
    with tf.control_dependencies([] if check is None else [check]):
        return tf.nest.map_structure(tf.identity, solution)


def _check_positions(batched_args: Sequence[int] | None, args: tuple) -> None:
    wrong = [position for position in batched_args or () if not 0 <= position < len(args)]
    if wrong:
        raise ValueError(
            f"batched_args must be positions in args, 0 to {len(args) - 1}; received {wrong}."
        )


def _checked_numbers(iterates: Sequence[int] | None) -> tuple[int, ...]:
    if iterates is None:
        return ()
    if not iterates:
        raise ValueError("iterates must name at least one number of evaluations; received none.")
    for number in iterates:
        require_positive_integer("iterates", number)
    return tuple(iterates)


def _backward_limits(
    adjoint: adjoints.Adjoint,
    solver: solvers.Solver,
    limits: Limits,
    tolerance: Any,
    max_steps: Any,
) -> Limits:
    """Returns the limits of the backward solve that follow from those of the call."""
    followed = Limits()
    if getattr(adjoint, "solver", None) is None:
        # A small forward budget makes answers cheaper; the gradient should keep its accuracy. And
        # an absolute tolerance has the units of the state, not those of the gradient.
        steps = limits.max_steps
        if steps is not None:
            larger = tf.maximum if tf.is_tensor(steps) else np.maximum
            steps = larger(steps, solver.max_steps)
        followed = limits._replace(max_steps=steps, absolute_tolerance=0.0)
    return followed._replace(
        tolerance=followed.tolerance if tolerance is None else tolerance,
        max_steps=followed.max_steps if max_steps is None else max_steps,
    )


def mark_non_finite(solution: Solution, finite: tf.Tensor, z0: Any) -> Solution:
    """Returns the solution with status NON_FINITE for samples with non-finite inputs.

    This is needed because f may saturate and return finite values for them. finite: [B] bool,
    whether a sample's inputs are finite. z0: replaces the z of the other samples, without a
    gradient; None: z is kept.
    """
    solution = solution._replace(
        status=tf.where(finite, solution.status, int(Status.NON_FINITE)),
    )
    if z0 is None:
        return solution
    start = tf.nest.map_structure(
        lambda leaf, z: tf.cast(tf.stop_gradient(leaf), z.dtype), z0, solution.z
    )
    return solution._replace(
        z=choose(finite, solution.z, start),
        residual=tf.where(finite, solution.residual, tf.float32.max),
        iterates=[choose(finite, state, start) for state in solution.iterates] or (),
    )
