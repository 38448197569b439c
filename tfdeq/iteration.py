"""The tf.while_loop of every solve: it evaluates f and counts, freezes and stops each sample on its own."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record

from tfdeq.compaction import BoundFunction, run_compacting
from tfdeq.numerics import safeguard
from tfdeq.numerics.fixed_shapes import shapes_are_fixed, unaliased
from tfdeq.numerics.function_evaluation import evaluate, evaluate_linearised, residual_of
from tfdeq.numerics.limits import Limits
from tfdeq.numerics.loop_state import (
    RUNNING,
    LoopSettings,
    LoopState,
    booked,
    is_small,
    results_of,
    running_of,
    with_records,
)
from tfdeq.numerics.split_function import evaluate_split, prepared_splitting
from tfdeq.numerics.state_layout import StateLayout
from tfdeq.solution import Solution
from tfdeq.solvers.solver import Solver


def iterate(
    f: Callable[[Any], Any],
    z0: Any,
    solver: Solver,
    tolerance: Any = None,
    max_steps: Any = None,
    *,
    patience: Any = None,
    absolute_tolerance: Any = None,
    return_image: bool = False,
    linear_part: Callable[[Any], Any] | None = None,
    return_state: bool = False,
    iterates: Sequence[int] = (),
    trace: bool = False,
) -> Any:
    """Finds z = f(z) for each sample, without a gradient.

    Each sample stops on its own: its iterate is then frozen, and neither its residual nor a NaN in
    it affects another sample. This works in eager mode, in tf.function and under XLA.

    Args:
        f: z -> like z, sample by sample (rows of the batch must not mix). If it is a
            `BoundFunction` that can be restricted to rows, samples that are done leave the batch,
            outside of XLA. The answers are the same, up to the rounding of another batch size.
        z0: nest of [B, ...] floating tensors.
        solver: the method; its settings apply where the next four arguments are None.
        tolerance: scalar or [B], relative residual; a Python number must be > 0.
        max_steps: scalar or [B] integers, largest number of evaluations; a Python number must be >=
            1. At least one evaluation is made.
        patience, absolute_tolerance: scalar or [B]; see `Solver`.
        return_image: return f of the best iterate instead of that iterate; the residual is still
            the iterate's. For a contraction, f of it is closer to the fixed point, at no cost.
        linear_part: for an affine f, v -> f(v) − f(0). A solver that uses products with the
            Jacobian then computes them with it, otherwise by a linearisation of f at the iterate.
        return_state: also return the solver's state, for each sample as it was after the sample's
            last evaluation. This costs a pass over the state in each step.
        iterates: numbers of evaluations, each at least 1, after which to keep the state.
        trace: keep the residual of every iterate.

    Returns:
        A `Solution` whose z carries no gradient; with return_state, a pair of it and the solver's
        state. With iterates, the solution's `iterates` are nests like z, one for each number: the z
        that a solve with this budget would return. (This does not hold for methods that use
        products with the Jacobian, which make fewer products for a smaller budget.)

    Raises:
        ValueError: if f's output is unlike z, or tolerance or max_steps are out of range.
    """
    z0 = tf.nest.map_structure(tf.convert_to_tensor, z0)
    # Compaction needs shapes that change, which XLA does not have.
    shrinks = _shrinks(f) and not return_state
    layout = StateLayout(z0, any_batch=shrinks)
    z = tf.stop_gradient(layout.flatten(z0))
    batch = tf.shape(z)[:1]
    if isinstance(f, BoundFunction) and solver.uses_products and _is_watched():
        evaluate(f, layout, z)  # finds captured tensors: see check_closures
    given = Limits(tolerance, max_steps, patience, absolute_tolerance)
    limits = given.resolved(solver, batch, z.dtype)
    most = given.most_steps(solver)
    prepared = prepared_splitting(f, layout, solver)
    settings = LoopSettings(
        solver, layout, return_image, return_state, linear_part, tuple(iterates), prepared
    )

    largest = tf.fill(batch, z.dtype.max)
    zeros = tf.zeros(batch, tf.int32)
    columns = tf.reduce_max(limits.max_steps) if most is None else most
    start = LoopState(
        k=tf.constant(0),
        z=z,
        best_z=z,
        best_residual=largest,
        mark_residual=largest,
        mark_step=zeros,
        steps=zeros,
        status=tf.fill(batch, RUNNING),
        scale=tf.ones(batch, z.dtype),
        base=() if solver.safeguard is None else safeguard.initial_state(z),
        solver=solver.initial_state(z, most),
        recorded=tf.tile(z[:, None], [1, len(iterates), 1]) if iterates else (),
        trace=tf.fill([batch[0], columns], float("nan")) if trace else (),
    )
    if shrinks:
        best_z, best_residual, steps, status, recorded, traced = run_compacting(
            lambda f, carried: (_run(settings, f, *carried, share=0.5), carried[1]),
            f,
            (start, limits),
            lambda carried: running_of(carried[0]),
            lambda carried: results_of(carried[0]),
        )
    else:
        end = _run(settings, f, start, limits)
        best_z, best_residual, steps, status, recorded, traced = results_of(end)
    residual = tf.cast(tf.minimum(best_residual, tf.cast(tf.float32.max, z.dtype)), tf.float32)
    states = [layout.unflatten(recorded[:, i]) for i in range(len(iterates))] or ()
    solution = Solution(layout.unflatten(best_z), residual, steps, status, states, traced)
    result = (solution, end.solver) if return_state else solution
    return tf.nest.map_structure(tf.stop_gradient, result)


def _shrinks(f: Callable[[Any], Any]) -> bool:
    return isinstance(f, BoundFunction) and f.compacts and not shapes_are_fixed()


def _is_watched() -> bool:
    """Whether a tape is recording in eager mode."""
    return tf.executing_eagerly() and record.could_possibly_record()


def _run(
    settings: LoopSettings,
    f: Callable[[Any], Any],
    start: LoopState,
    limits: Limits,
    share: float = 0.0,
) -> LoopState:
    """Runs the loop until at most this share of the samples that run now is running."""

    def running_in(state: LoopState) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(running_of(state), tf.float32))

    most = share * running_in(start) if share else 0.0

    def goes_on(*fields: Any) -> tf.Tensor:
        return running_in(LoopState(*fields)) > most

    def body(*fields: Any) -> list[Any]:
        state = LoopState(*fields)
        return unaliased(_turn(settings, f, state, limits), state, state.k)

    return LoopState(*tf.while_loop(goes_on, body, list(start), parallel_iterations=1))


def _turn(
    settings: LoopSettings, f: Callable[[Any], Any], state: LoopState, limits: Limits
) -> LoopState:
    """Evaluates f once, records the result, and makes the solver's step to the next iterate."""
    solver, layout = settings.solver, settings.layout
    before = state
    f_z, affine_z, product = _evaluated(settings, f, state.z)
    seen = layout.rounded(state.z)
    residual = residual_of(seen, f_z, with_unit=tf.equal(state.k, 0))
    kept = f_z if settings.return_image else seen
    state = booked(settings, state, kept, residual, limits)
    state = with_records(settings, before, state, residual)
    z, running = state.z, running_of(state)
    if solver.safeguard is not None:
        base, z, f_z, plain = safeguard.guard(
            state.base, z, f_z, residual.relative, solver.safeguard
        )
        state = state._replace(base=base, solver=solver.restart(state.solver, plain))
    if solver.computes_squares:  # in a unit that the first evaluation determines
        scale = tf.where(tf.equal(state.k, 0), residual.unit, state.scale)
        state = state._replace(scale=scale)
    scaled_z, scaled_f_z = _divided(solver, state.scale, z, f_z)
    if solver.uses_products:
        # One evaluation is reserved for the point that the products lead to.
        allowed = tf.where(running, limits.max_steps - state.steps - 1, 0)
        solver_state, next_z, spent = solver.step_with_products(
            state.solver,
            state.k,
            scaled_z,
            scaled_f_z,
            product,
            running,
            allowed,
            limits.tolerance,
        )
        state = state._replace(steps=state.steps + tf.where(running, spent, 0))
    elif settings.prepared is not None:
        solver_state, next_z = solver.step_with_splitting(
            state.solver, state.k, scaled_z, affine_z, settings.prepared
        )
    else:
        solver_state, next_z = solver.step(state.solver, state.k, scaled_z, scaled_f_z)
    (next_z,) = _divided(solver, 1 / state.scale, next_z)
    if settings.return_state:
        solver_state = solver.select(running_of(before), solver_state, before.solver)
    next_z = tf.where(running[:, None], next_z, state.z)
    next_z.set_shape(z.shape)
    return state._replace(k=state.k + 1, z=next_z, solver=solver_state)


def _evaluated(settings: LoopSettings, f: Callable[[Any], Any], z: tf.Tensor) -> tuple:
    """Returns f(z), f's affine part at z and the product with the Jacobian, or None where not needed."""
    layout = settings.layout
    if settings.prepared is not None:
        return *evaluate_split(f, layout, z, settings.prepared), None
    # A function without arguments, such as an adjoint system, captures all that it depends on.
    bare = not isinstance(f, BoundFunction)
    if settings.solver.uses_products and settings.linear_part is None:
        f_z, product = evaluate_linearised(f, layout, z, bare)
        return f_z, None, product
    product = lambda v: layout.flatten(settings.linear_part(layout.unflatten(v)))  # noqa: E731
    return evaluate(f, layout, z, bare), None, product


def _divided(solver: Solver, scale: tf.Tensor, *states: tf.Tensor) -> list[tf.Tensor]:
    """Returns the states [B, D] with each sample divided by its scale [B], a power of two."""
    if not solver.computes_squares:
        return list(states)

    def divided():
        return [state * (1 / scale)[:, None] for state in states]

    # Under XLA the division is fused with the next operation.
    if shapes_are_fixed() or all(map(is_small, states)):
        return divided()
    result = tf.cond(tf.reduce_any(tf.not_equal(scale, 1)), divided, lambda: list(states))
    for one, state in zip(result, states, strict=True):
        one.set_shape(state.shape)
    return list(result)
