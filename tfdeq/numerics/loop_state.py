"""The state of a solve's loop, and its update after an evaluation of f."""

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
# A fall of the best residual by 0.1 % counts as progress.
_PROGRESS = 0.999
# A residual within _FLOOR units of rounding is at the dtype's precision; FLOOR_STEPS iterates must
# show it.
_FLOOR = 4.0
FLOOR_STEPS = 12
# Up to this many entries per sample, computing something costs less than checking whether it is
# needed.
_SMALL = 1024


class LoopState(NamedTuple):
    """The loop variables, for B samples of D numbers."""

    k: tf.Tensor  # scalar int32, number of iterates evaluated in the loop
    z: tf.Tensor  # [B, D] the iterate to evaluate next
    best_z: tf.Tensor  # [B, D] the iterate with the lowest residual so far, or its image
    best_residual: tf.Tensor  # [B] its residual; initially the dtype's largest number
    mark_residual: tf.Tensor  # [B] best residual when it last fell by more than 0.1 %
    mark_step: tf.Tensor  # [B] int32, number of the iterate at that time
    steps: tf.Tensor  # [B] int32, evaluations spent on the sample
    status: tf.Tensor  # [B] int32, a Status, or RUNNING
    scale: tf.Tensor  # [B] the solver works on z / scale; 1 for states of ordinary size
    base: Any  # a SafeguardState; () for a solver without safeguard
    solver: Any  # the method's own state
    recorded: Any  # [B, n, D] the best z after each number of evaluations; () if not requested
    trace: Any  # [B, max_steps] residuals by evaluation; () if not requested


class LoopSettings(NamedTuple):
    """The constant settings of the loop; see `iterate`."""

    solver: Solver
    layout: StateLayout
    return_image: bool
    return_state: bool
    linear_part: Callable[[Any], Any] | None
    iterates: tuple[int, ...]
    prepared: Prepared | None = None  # for a method that uses the splitting of f


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
    """Records one evaluation: counts it, keeps it if it is the best, and ends samples that are done.

    Args:
        settings, state: those of the loop, before the evaluation. limits: limits of each sample, [B].
        kept: [B, D], the part of the evaluation to keep: the iterate or its image.
        found: the residuals of the evaluation.
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
    # Counts iterates, not evaluations: products with the Jacobian take effect at the next iterate.
    mark_step = tf.where(progress, state.k, state.mark_step)
    mark_residual = tf.where(progress, best_residual, state.mark_residual)

    level = state.k - mark_step
    at_floor = best_residual <= tf.cast(_FLOOR * settings.layout.epsilon, residual.dtype)
    stagnated = (level >= limits.patience) | (at_floor & (level >= FLOOR_STEPS))
    if solver.memoryless and solver.safeguard is None:
        stagnated |= _came_back(state, kept, residual, running & ~better)
    # Later lines override earlier ones: a sample that converges with its last evaluation has
    # converged.
    status = tf.fill(tf.shape(steps), RUNNING)
    status = tf.where(stagnated, int(Status.STAGNATED), status)
    spent = steps >= limits.max_steps
    status = tf.where(spent, int(Status.MAX_STEPS), status)
    # A method that recovers from NaN may continue, unless there is no iterate to return to.
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
    """[B] bool: candidates whose iterate equals the best one bit for bit.

    A cyclic iteration returns to the best iterate of its cycle. Residuals, which are cheap to compare,
    show where the iterates need to be compared.
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
    """Stores the states and residuals that were requested.

    Args:
        settings: those of the loop. before, state: before the evaluation and after it was recorded.
        found: the residuals of the evaluation.
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
    """Whether computing with a state [B, D] costs less than checking whether that is needed."""
    return state.shape[1] is not None and state.shape[1] <= _SMALL
