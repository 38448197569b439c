"""Broyden's good method in compact product form, which keeps only the steps."""

import dataclasses
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq.solvers import history, limited_memory_broyden
from tfdeq.solvers.solver import Solver, require_damping, require_positive_integer

# If 1 − α c is below this value, the update counts as singular and the sample's estimate is reset.
_SINGULAR = 1e-4


class BroydenState(NamedTuple):
    steps: tf.Tensor  # [B, k, D] the steps s_0 … so far; under XLA [B, m, D], padded with 0
    gram: tf.Tensor  # [B, m, m] inner products of the steps
    inverse: tf.Tensor  # [B, m, m] upper triangular: c = inverseᵀ · (s_jᵀ g)_j


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class Broyden(Solver):
    """Broyden's (good) method for g(z) = f(z) − z = 0, from the inverse estimate H₀ = −I.

    z_{k+1} = z_k − α H_k g_k and H_{k+1} = H_k + (s − H_k y) sᵀH_k / (sᵀH_k y), with s the step and
    y the change of g, so that H_{k+1} y = s. H is never formed: with d_i = s_{i+1} − (1 − α) s_i,
    −H_k v = v + Σ c_i d_i,   ‖s_j‖² c_j = s_jᵀv + Σ_{i<j} (s_jᵀd_i) c_i,
    so only the steps and their Gram matrix are kept: half as much as the usual U Vᵀ.
    If an update would be singular, the sample's estimate is reset to −I.

    With a solver window smaller than the budget, this compact form does not apply, and twice as many
    vectors are kept; see `tfdeq.solvers.limited_memory_broyden`. The oldest update is then dropped
    before the newest is computed, so H y = s always holds for the newest pair.

    Args:
        max_steps: largest number of evaluations of f per sample. Default 30.
        tolerance: relative residual at which a sample has converged. Default 1e-3.
        memory: the solver window, the number of updates kept, at least 1. None keeps all of them:
            max_steps, or the max_steps of a call. If a call's max_steps is a tensor whose value is
            known only when the graph runs, and it is larger than the solver's, the estimate is reset
            after the solver's max_steps. Default None.
        damping: α in (0, 1]. Default 1.

    Raises:
        ValueError: for a setting out of range.

    Source: Broyden, Math. Comp. 19, 1965; product form: Kelley, Iterative Methods for Linear and
        Nonlinear Equations, 1995, section 7.3; damping: Bai, Kolter, Koltun, arXiv:1909.01377,
        equation (6).

    Example:
        >>> Broyden(max_steps=12).max_steps
        12
    """

    memory: int | None = None
    damping: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.memory is not None:
            require_positive_integer("memory", self.memory)
        require_damping(self.damping)

    def initial_state(self, z, max_steps=None):
        rows = max_steps or self.max_steps
        if self.memory is not None and self.memory < rows:
            return limited_memory_broyden.initial_state(z, self.memory)
        steps = history.growing(z, rows)
        square = tf.zeros([tf.shape(z)[0], rows, rows], z.dtype)
        square.set_shape([z.shape[0], rows, rows])
        return BroydenState(steps, square, square)

    def step(self, state, k, z, f_z):
        if isinstance(state, limited_memory_broyden.State):
            return limited_memory_broyden.step(state, k, z, f_z, self.damping)
        alpha = tf.constant(self.damping, z.dtype)
        g = f_z - z
        rows = state.inverse.shape[1]
        position = k % rows  # of the step computed in this call
        new = tf.one_hot(position, rows, dtype=z.dtype)
        last = tf.one_hot((k - 1) % rows, rows, dtype=z.dtype)

        t = history.inner_products(state.steps, g, rows)  # [B, m] s_jᵀ g
        c = _left_product(t, state.inverse)
        c_last = tf.reduce_sum(c * last, axis=-1, keepdims=True)
        weights = _shift_right(c * (1 - last)) - (1 - alpha) * c  # Σ c_i d_i in terms of s_j
        denominator = 1 - alpha * c_last
        restart = tf.logical_or(tf.abs(denominator) < _SINGULAR, position == 0)  # [B, 1]
        keep = tf.where(restart, tf.zeros_like(denominator), tf.ones_like(denominator))
        scale = tf.where(restart, tf.ones_like(denominator), 1 / denominator)
        weights = keep * weights * scale
        step = alpha * (scale * g + history.combination(state.steps, weights))

        # The new row of the Gram matrix follows from t and the weights, without another pass over D.
        row = alpha * (scale * t + _left_product(weights, state.gram))
        square = tf.reduce_sum(step * step, axis=-1, keepdims=True)
        row = keep * row * (1 - new) + square * new
        gram = _with_row(keep[:, :, None] * state.gram, new, row)
        gram = _with_row(gram, new, row, column=True)
        coupling = (_shift_left(row) - (1 - alpha) * row) * keep * _before(position, rows, z.dtype)
        column = new + tf.reduce_sum(state.inverse * coupling[:, None, :], axis=2)
        column = tf.math.divide_no_nan(column, square)
        inverse = _with_row(keep[:, :, None] * state.inverse, new, column, column=True)
        steps = history.appended(state.steps, position, step)
        return BroydenState(steps, gram, inverse), z + step

    def restart(self, state, mask):
        if isinstance(state, limited_memory_broyden.State):
            return limited_memory_broyden.restart(state, mask)
        inverse = tf.where(mask[:, None, None], tf.zeros_like(state.inverse), state.inverse)
        return state._replace(inverse=inverse)

    def select(self, mask, state, other):
        if isinstance(state, BroydenState):
            other = other._replace(steps=history.padded(other.steps, state.steps))
        return super().select(mask, state, other)

    def transposed_inverse(self, state: Any, evaluations: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        """Returns −Hᵀv [B, D], where H is the inverse estimate after each sample's evaluations.

        Let S be the steps, Nᵀ the stored inverse, and W the matrix that maps c to the weights of Σ c_i
        d_i in terms of S. Then −H = I + SᵀWNS. The last step's d is not known yet, so W omits it.

        Args:
            state: state of each sample after its last evaluation. evaluations: [B] int32, >= 1.
            v: [B, D].
        """
        if isinstance(state, limited_memory_broyden.State):
            return limited_memory_broyden.transposed_inverse(state, v)
        rows = state.inverse.shape[1]
        known = 1 - tf.one_hot((evaluations - 1) % rows, rows, dtype=v.dtype)
        t = history.inner_products(state.steps, v, rows)
        weights = known * (_shift_left(t) - tf.constant(1 - self.damping, v.dtype) * t)
        c = tf.linalg.matvec(state.inverse, weights)
        return v + history.combination(state.steps, c)


def _left_product(row: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """rowᵀ · matrix, [B, m], [B, m, m] -> [B, m]. Written as sums, which fuse; small products do not."""
    return tf.reduce_sum(row[:, :, None] * matrix, axis=1)


def _shift_right(row: tf.Tensor) -> tf.Tensor:
    return tf.pad(row[:, :-1], [[0, 0], [1, 0]])


def _shift_left(row: tf.Tensor) -> tf.Tensor:
    return tf.pad(row[:, 1:], [[0, 0], [0, 1]])


def _before(position: tf.Tensor, rows: int, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(tf.range(rows) < position, dtype)


def _with_row(matrix: tf.Tensor, new: tf.Tensor, row: tf.Tensor, column: bool = False) -> tf.Tensor:
    """Puts row [B, m] into matrix [B, m, m] at the row (or column) given by the one-hot vector `new`."""
    if column:
        return tf.where(new[None, None, :] > 0, row[:, :, None], matrix)
    return tf.where(new[None, :, None] > 0, row[:, None, :], matrix)
