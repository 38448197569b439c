"""Broyden's method with a bounded solver window, which drops the oldest update."""

from typing import NamedTuple

import tensorflow as tf

from tfdeq.solvers import history

# If sᵀH y is below this share of ‖s‖², the update counts as singular and is omitted.
_SINGULAR = 1e-4


class State(NamedTuple):
    last_step: tf.Tensor  # [B, D] the step to the next iterate
    last_g: tf.Tensor  # [B, D] g = f(z) − z where that step began
    known: tf.Tensor  # [B] bool, whether these two are set
    steps: tf.Tensor  # [B, m, D] s_j, a ring
    updates: tf.Tensor  # [B, m, D] u_j, the same ring
    inverse: tf.Tensor  # [B, m, m] c = inverse · (s_jᵀ v)_j; rows and columns of empty slots are 0


def initial_state(z: tf.Tensor, memory: int) -> State:
    """Returns the state of a solve that keeps `memory` updates; z: [B, D]."""
    batch = tf.shape(z)[0]
    rows = history.empty(z, memory)
    square = tf.zeros([batch, memory, memory], z.dtype)
    square.set_shape([z.shape[0], memory, memory])
    zeros = tf.zeros_like(z)
    return State(zeros, zeros, tf.zeros([batch], tf.bool), rows, rows, square)


def step(
    state: State, k: tf.Tensor, z: tf.Tensor, f_z: tf.Tensor, damping: float
) -> tuple[State, tf.Tensor]:
    """One step of −H = (I + u_m s_mᵀ) … (I + u_1 s_1ᵀ), the newest factor on the left.

    Let H be the estimate without the oldest update, p = −H g, and r = −H y for the change y of g over
    the last step s. The newest update u = (s + r) / (−sᵀr) gives H y = s, and the next step is p + u
    (sᵀp). Applied to v, the factors are v + Σ c_j u_j with c_j = s_jᵀv + Σ_{i older than j} (s_jᵀu_i)
    c_i, a triangular system. Its inverse is stored; without the oldest row and column it is the inverse
    of the smaller system.
    """
    rows = state.steps.shape[1]
    position = (k - 1) % rows  # of the oldest update, which the newest replaces
    slot = tf.one_hot(position, rows, dtype=z.dtype)
    g = f_z - z
    y, s = g - state.last_g, state.last_step
    inverse = state.inverse * (1 - slot)[None, :, None] * (1 - slot)[None, None, :]
    p, r = (_apply(state.steps, state.updates, inverse, v) for v in (g, y))

    square = tf.reduce_sum(s * s, axis=-1)
    denominator = -tf.reduce_sum(s * r, axis=-1)
    usable = state.known & (tf.abs(denominator) > _SINGULAR * square)
    scale = tf.where(usable, 1 / tf.where(usable, denominator, 1), 0)
    update = scale[:, None] * (s + r)
    next_step = tf.constant(damping, z.dtype) * (
        p + update * tf.reduce_sum(s * p, axis=-1, keepdims=True)
    )

    coupling = history.inner_products(state.updates, s)  # s_newᵀu_i; the cleared slot is 0
    row = slot + tf.linalg.matvec(inverse, coupling, transpose_a=True)
    row = tf.where(usable[:, None], row, 0)
    inverse = tf.where(slot[None, :, None] > 0, row[:, None, :], inverse)
    steps = history.with_row(state.steps, position, s)
    updates = history.with_row(state.updates, position, update)
    known = tf.ones_like(state.known)
    return State(next_step, g, known, steps, updates, inverse), z + next_step


def _apply(steps: tf.Tensor, updates: tf.Tensor, inverse: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """Returns −H v [B, D], for one vector, because XLA is much slower at products with a few columns."""
    coefficients = tf.linalg.matvec(inverse, history.inner_products(steps, v))
    return v + history.combination(updates, coefficients)


def restart(state: State, mask: tf.Tensor) -> State:
    """Resets the updates of the samples in mask [B], and the step that would give the next one."""
    inverse = tf.where(mask[:, None, None], tf.zeros_like(state.inverse), state.inverse)
    return state._replace(inverse=inverse, known=state.known & tf.logical_not(mask))


def transposed_inverse(state: State, v: tf.Tensor) -> tf.Tensor:
    """Returns −Hᵀv = v + Sᵀ Nᵀ U v; [B, D] -> [B, D]."""
    t = history.inner_products(state.updates, v)
    c = tf.linalg.matvec(state.inverse, t, transpose_a=True)
    return v + history.combination(state.steps, c)
