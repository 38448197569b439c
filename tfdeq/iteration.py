"""The one tf.while_loop: evaluates f, counts, freezes and stops each sample on its own."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdeq import safeguard
from tfdeq.compaction import BoundFunction, run_compacting
from tfdeq.function_evaluation import evaluate, evaluate_linearised, relative_residual
from tfdeq.samples import per_sample
from tfdeq.solution import Solution, Status
from tfdeq.solvers.solver import Solver
from tfdeq.state_layout import StateLayout
from tfdeq.xla import compiles_with_xla

_RUNNING = -1
# A sample has stagnated when its best residual fell by less than 0.1 % over this many iterates.
STAGNATION_STEPS = 12
_STAGNATION_FACTOR = 0.999


class _LoopState(NamedTuple):
    k: tf.Tensor  # [] int32, iterates evaluated in the loop
    z: tf.Tensor  # [B, D] the iterate to evaluate next
    best_z: tf.Tensor  # [B, D] the iterate of the lowest residual so far, or its image
    best_residual: tf.Tensor  # [B] its residual; the dtype's largest number before the first one
    mark_residual: tf.Tensor  # [B] best residual when it last fell by more than 0.1 %
    mark_step: tf.Tensor  # [B] int32, the number of the iterate at which that was
    steps: tf.Tensor  # [B] int32, evaluations spent on the sample
    status: tf.Tensor  # [B] int32, a Status, or _RUNNING
    base: Any  # a SafeguardState; () for a solver without safeguard
    solver: Any  # the method's own state
    recorded: Any  # [B, n, D] the best z after each number of evaluations; () where none is wanted


def iterate(
    f: Callable[[Any], Any],
    z0: Any,
    solver: Solver,
    tolerance: Any = None,
    max_steps: Any = None,
    return_image: bool = False,
    linear_part: Callable[[Any], Any] | None = None,
    return_state: bool = False,
    iterates: Sequence[int] = (),
) -> Any:
    """Finds z = f(z) for each sample; nothing here carries a gradient.

    Each sample stops on its own: its iterate is frozen from then on, and neither its residual nor a
    NaN in it reaches another sample. Runs in eager mode, in tf.function and under XLA.

    Args:
        f: z -> like z, sample by sample (rows of the batch must not mix). A `BoundFunction` with
            rows: outside of XLA, samples that are done leave the batch, so that the cost follows
            the work; the answers are the same, up to the rounding of another batch size.
        z0: nest of [B, ...] floating tensors.
        solver: the method; its tolerance and max_steps hold where the next two are None.
        tolerance: scalar or [B], relative residual; a Python number must be > 0.
        max_steps: scalar or [B] integers, evaluations; a Python number must be >= 1. One
            evaluation is always made.
        return_image: return f of the best iterate instead of that iterate; the residual is still the
            iterate's. For a contraction that is one step nearer, and it costs nothing.
        linear_part: for an affine f, v -> f(v) − f(0), which a solver that asks for products with the
            Jacobian then uses; else they come from a linearisation of f at the iterate.
        return_state: return also the solver's state, that of each sample as its last evaluation left
            it. Keeping it apart costs a pass over the state in each step.
        iterates: numbers of evaluations, each at least 1; return also what there was after each.

    Returns:
        A `Solution` whose z carries no gradient; with return_state, that and the solver's state; with
        iterates, that and a list of nests like z, one for each number: what z would have been
        had the budget been that.

    Raises:
        ValueError: if f's output is unlike z, or tolerance or max_steps are out of range.
    """
    z0 = tf.nest.map_structure(tf.convert_to_tensor, z0)
    # Under XLA shapes are fixed.
    has_rows = isinstance(f, BoundFunction) and f.has_rows
    shrinks = has_rows and not return_state and not compiles_with_xla()
    layout = StateLayout(z0, any_batch=shrinks)
    z = tf.stop_gradient(layout.flatten(z0))
    batch = tf.shape(z)[:1]
    budget = solver.max_steps if max_steps is None else tf.get_static_value(max_steps)
    tolerance = per_sample("tolerance", tolerance, solver.tolerance, batch, z.dtype)
    max_steps = per_sample("max_steps", max_steps, solver.max_steps, batch, tf.int32)
    most = int(np.max(budget)) if budget is not None and np.size(budget) else None
    step = _Step(solver, layout, return_image, return_state, linear_part, tuple(iterates))

    largest = tf.fill(batch, z.dtype.max)
    zeros = tf.zeros(batch, tf.int32)
    start = _LoopState(
        k=tf.constant(0),
        z=z,
        best_z=z,
        best_residual=largest,
        mark_residual=largest,
        mark_step=zeros,
        steps=zeros,
        status=tf.fill(batch, _RUNNING),
        base=() if solver.safeguard is None else safeguard.initial_state(z),
        solver=solver.initial_state(z, most),
        recorded=tf.tile(z[:, None], [1, len(iterates), 1]) if iterates else (),
    )
    if shrinks:
        best_z, best_residual, steps, status, recorded = run_compacting(
            lambda f, carried: (_run(step, f, *carried, share=0.5), *carried[1:]),
            f,
            (start, tolerance, max_steps),
            lambda carried: _running(carried[0]),
            lambda carried: _results(carried[0]),
        )
    else:
        end = _run(step, f, start, tolerance, max_steps)
        best_z, best_residual, steps, status, recorded = _results(end)
    residual = tf.cast(tf.minimum(best_residual, tf.cast(tf.float32.max, z.dtype)), tf.float32)
    solution = Solution(layout.unflatten(best_z), residual, steps, status)
    result = (solution, end.solver) if return_state else solution
    if iterates:
        result = (solution, [layout.unflatten(recorded[:, i]) for i in range(len(iterates))])
    return tf.nest.map_structure(tf.stop_gradient, result)


class _Step(NamedTuple):
    """What every turn of the loop needs to know."""

    solver: Solver
    layout: StateLayout
    return_image: bool
    return_state: bool
    linear_part: Callable[[Any], Any] | None
    iterates: tuple[int, ...]


def _run(
    step: _Step,
    f: Callable[[Any], Any],
    start: _LoopState,
    tolerance: tf.Tensor,
    max_steps: tf.Tensor,
    share: float = 0.0,
) -> _LoopState:
    """The loop, until at most this share of the samples is running."""

    def goes_on(*fields: Any) -> tf.Tensor:
        running = tf.reduce_sum(tf.cast(_running(_LoopState(*fields)), tf.float32))
        return running > share * tf.cast(tf.size(tolerance), tf.float32)

    def body(*fields: Any) -> _LoopState:
        return _turn(step, f, _LoopState(*fields), tolerance, max_steps)

    return _LoopState(*tf.while_loop(goes_on, body, list(start), parallel_iterations=1))


def _running(state: _LoopState) -> tf.Tensor:
    return tf.equal(state.status, _RUNNING)


def _results(state: _LoopState) -> tuple[tf.Tensor, ...]:
    return state.best_z, state.best_residual, state.steps, state.status, state.recorded


def _turn(
    step: _Step,
    f: Callable[[Any], Any],
    state: _LoopState,
    tolerance: tf.Tensor,
    max_steps: tf.Tensor,
) -> _LoopState:
    """One evaluation of f, its booking, and the solver's step to the next iterate."""
    solver, layout = step.solver, step.layout
    before = state
    if solver.uses_products and step.linear_part is None:
        f_z, product = evaluate_linearised(f, layout, state.z)
    else:
        f_z = evaluate(f, layout, state.z)
        product = lambda v: layout.flatten(step.linear_part(layout.unflatten(v)))  # noqa: E731
    kept = f_z if step.return_image else state.z
    residual = relative_residual(state.z, f_z)
    state = _account(state, kept, residual, tolerance, max_steps, solver.recovers)
    if step.iterates:
        due = state.steps[:, None] <= tf.constant(step.iterates, tf.int32)
        recorded = tf.where(due[..., None], state.best_z[:, None], state.recorded)
        state = state._replace(recorded=recorded)
    z = state.z
    if solver.safeguard is not None:
        base, z, f_z, plain = safeguard.guard(state.base, z, f_z, residual, solver.safeguard)
        state = state._replace(base=base, solver=solver.restart(state.solver, plain))
    running = _running(state)
    if solver.uses_products:
        # One evaluation is left for the point that the products lead to.
        allowed = tf.where(running, max_steps - state.steps - 1, 0)
        solver_state, next_z, spent = solver.step_with_products(
            state.solver, state.k, z, f_z, product, running, allowed, tolerance
        )
        state = state._replace(steps=state.steps + tf.where(running, spent, 0))
    else:
        solver_state, next_z = solver.step(state.solver, state.k, z, f_z)
    if step.return_state:
        solver_state = solver.select(_running(before), solver_state, before.solver)
    next_z = tf.where(running[:, None], next_z, state.z)
    next_z.set_shape(z.shape)
    return state._replace(k=state.k + 1, z=next_z, solver=solver_state)


def _account(
    state: _LoopState,
    kept: tf.Tensor,
    residual: tf.Tensor,
    tolerance: tf.Tensor,
    max_steps: tf.Tensor,
    recovers: bool,
) -> _LoopState:
    """Books one evaluation: counts it, keeps it if it is the best, ends samples that are done."""
    running = tf.equal(state.status, _RUNNING)
    steps = state.steps + tf.cast(running, tf.int32)
    finite = tf.math.is_finite(residual)
    better = running & finite & (residual < state.best_residual)
    best_residual = tf.where(better, residual, state.best_residual)
    best_z = tf.where(better[:, None], kept, state.best_z)
    factor = tf.cast(_STAGNATION_FACTOR, residual.dtype)
    progress = best_residual < factor * state.mark_residual
    # Iterates, not evaluations: products with the Jacobian are work that shows at the next iterate.
    mark_step = tf.where(progress, state.k, state.mark_step)
    mark_residual = tf.where(progress, best_residual, state.mark_residual)

    # The later line wins: a sample that converges with its last evaluation has converged.
    status = tf.fill(tf.shape(steps), _RUNNING)
    # What goes back and tries again takes longer: until the plain streaks, 1, 2, 4, …, have become
    # longer than a plain iteration's patience, with the refused attempts in between.
    patience = 8 * STAGNATION_STEPS if recovers else STAGNATION_STEPS
    stagnated = state.k - mark_step >= patience
    status = tf.where(stagnated, int(Status.STAGNATED), status)
    status = tf.where(steps >= max_steps, int(Status.MAX_STEPS), status)
    # A method that goes back from NaN may try, unless there is nothing to go back to.
    hopeless = (stagnated | (state.k == 0)) if recovers else tf.constant(True)
    status = tf.where(finite | tf.logical_not(hopeless), status, int(Status.NON_FINITE))
    status = tf.where(finite & (residual <= tolerance), int(Status.CONVERGED), status)
    return state._replace(
        best_z=best_z,
        best_residual=best_residual,
        mark_residual=mark_residual,
        mark_step=mark_step,
        steps=steps,
        status=tf.where(running, status, state.status),
    )
