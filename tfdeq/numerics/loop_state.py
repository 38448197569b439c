"""The state of a solve's loop, and what an evaluation of f changes in it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfdeq.numerics.function_evaluation import Residual
from tfdeq.numerics.limits import Limits
from tfdeq.numerics.state_layout import StateLayout
from tfdeq.solution import Status
from tfdeq.solvers.solver import Solver
from tfdeq.solvers.splitting import Prepared

RUNNING = -1
# Progress is a best residual that has fallen by 0.1 %.
_PROGRESS = 0.999
# At so many units of rounding a residual is at the precision's floor; so many iterates must show it.
_FLOOR = 4.0
FLOOR_STEPS = 12
# Entries of a sample up to which computing a thing costs less than asking whether it is needed.
_SMALL = 1024


class LoopState(NamedTuple):
    """What the loop hands from one turn to the next, for B samples of D numbers."""

    k: tf.Tensor  # [] int32, iterates evaluated in the loop
    z: tf.Tensor  # [B, D] the iterate to evaluate next
    best_z: tf.Tensor  # [B, D] the iterate of the lowest residual so far, or its image
    best_residual: tf.Tensor  # [B] its residual; the dtype's largest number before the first one
    mark_residual: tf.Tensor  # [B] best residual when it last fell by more than 0.1 %
    mark_step: tf.Tensor  # [B] int32, the number of the iterate at which that was
    steps: tf.Tensor  # [B] int32, evaluations spent on the sample
    status: tf.Tensor  # [B] int32, a Status, or RUNNING
    scale: tf.Tensor  # [B] the solver works on z / scale; 1 for states of ordinary size
    base: Any  # a SafeguardState; () for a solver without safeguard
    solver: Any  # the method's own state
    recorded: Any  # [B, n, D] the best z after each number of evaluations; () where none is wanted
    trace: Any  # [B, max_steps] residuals by evaluation; () where none is wanted


class LoopSettings(NamedTuple):
    """What every turn of the loop needs to know; see `iterate`."""

    solver: Solver
    layout: StateLayout
    return_image: bool
    return_state: bool
    linear_part: Callable[[Any], Any] | None
    iterates: tuple[int, ...]
    prepared: Prepared | None = None  # for a method that uses the parts of f


def running_of(state: LoopState) -> tf.Tensor:
    """Returns which samples are running, [B] bool."""
    return tf.equal(state.status, RUNNING)


def results_of(state: LoopState) -> tuple[Any, ...]:
    """Returns best_z, best_residual, steps, status, recorded and trace."""
    fields = (state.best_z, state.best_residual, state.steps, state.status)
    return (*fields, state.recorded, state.trace)


def booked(
    settings: LoopSettings, state: LoopState, kept: tf.Tensor, found: Residual, limits: Limits
) -> LoopState:
    """Books one evaluation: counts it, keeps it if it is the best, ends samples that are done.

    Args:
        settings, state: the loop's, before. limits: of each sample, [B].
        kept: [B, D], what is kept of the evaluation: the iterate or its image.
        found: its residuals.
    """
    residual, solver = found.relative, settings.solver
    running = tf.equal(state.status, RUNNING)
    steps = state.steps + tf.cast(running, tf.int32)
    finite = tf.math.is_finite(residual)
    converged = residual <= limits.tolerance
    converged |= found.distance <= limits.absolute_tolerance
    better = running & finite & ((residual < state.best_residual) | converged)
    best_residual = tf.where(better, residual, state.best_residual)
    best_z = tf.where(better[:, None], kept, state.best_z)
    progress = best_residual < tf.cast(_PROGRESS, residual.dtype) * state.mark_residual
    # Iterates, not evaluations: products with the Jacobian are work that shows at the next iterate.
    mark_step = tf.where(progress, state.k, state.mark_step)
    mark_residual = tf.where(progress, best_residual, state.mark_residual)

    level = state.k - mark_step
    at_floor = best_residual <= tf.cast(_FLOOR * settings.layout.epsilon, residual.dtype)
    stagnated = (level >= limits.patience) | (at_floor & (level >= FLOOR_STEPS))
    if solver.memoryless and solver.safeguard is None:
        stagnated |= _came_back(state, kept, residual, running & ~better)
    # The later line wins: a sample that converges with its last evaluation has converged.
    status = tf.fill(tf.shape(steps), RUNNING)
    status = tf.where(stagnated, int(Status.STAGNATED), status)
    spent = steps >= limits.max_steps
    status = tf.where(spent, int(Status.MAX_STEPS), status)
    # A method that goes back from NaN may try, unless there is nothing to go back to.
    hopeless = (stagnated | spent | (state.k == 0)) if solver.recovers else tf.constant(True)
    status = tf.where(finite | tf.logical_not(hopeless), status, int(Status.NON_FINITE))
    status = tf.where(finite & converged, int(Status.CONVERGED), status)
    return state._replace(
        best_z=best_z,
        best_residual=best_residual,
        mark_residual=mark_residual,
        mark_step=mark_step,
        steps=steps,
        status=tf.where(running, status, state.status),
    )


def _came_back(
    state: LoopState, kept: tf.Tensor, residual: tf.Tensor, candidates: tf.Tensor
) -> tf.Tensor:
    """[B] bool: candidates whose iterate is the best one, bit for bit, once more.

    What repeats itself comes back to the best iterate of its cycle. Equal residuals, which cost
    nothing to compare, say where that is worth a look.
    """
    candidates &= tf.equal(residual, state.best_residual)

    def compared():
        return candidates & tf.reduce_all(tf.equal(kept, state.best_z), axis=1)

    if is_small(kept):
        return compared()
    return tf.cond(tf.reduce_any(candidates), compared, lambda: candidates)


def with_records(
    settings: LoopSettings, before: LoopState, state: LoopState, found: Residual
) -> LoopState:
    """Keeps the states and residuals that were asked for.

    Args:
        settings: the loop's. before, state: before the evaluation and after it was booked.
        found: the evaluation's residuals.
    """
    if settings.iterates:
        due = state.steps[:, None] <= tf.constant(settings.iterates, tf.int32)
        recorded = tf.where(due[..., None], state.best_z[:, None], state.recorded)
        state = state._replace(recorded=recorded)
    if tf.is_tensor(state.trace):
        column = tf.range(tf.shape(state.trace)[1])[None]
        here = tf.equal(column, state.steps[:, None] - 1) & running_of(before)[:, None]
        residual = tf.cast(found.relative, tf.float32)[:, None]
        trace = tf.where(here, residual, state.trace)
        trace.set_shape(state.trace.shape)
        state = state._replace(trace=trace)
    return state


def is_small(state: tf.Tensor) -> bool:
    """Whether computing with a state [B, D] costs less than asking whether that is needed."""
    return state.shape[1] is not None and state.shape[1] <= _SMALL
