"""Anderson acceleration, type II and type I, in difference form with a scale-free ridge."""

import dataclasses
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdeq.solvers import history, small_matrices
from tfdeq.solvers.solver import (
    Solver,
    require_damping,
    require_positive,
    require_positive_integer,
)


class AndersonState(NamedTuple):
    previous_z: tf.Tensor  # [B, D] the previous iterate
    previous_g: tf.Tensor  # [B, D] g = f(z) − z there
    known: tf.Tensor  # [B] bool, whether these two are set
    updates: tf.Tensor  # [B, m, D] Δz + α Δg, a ring of the last m differences
    differences: tf.Tensor  # [B, m, D] Δg, the same ring
    gram: (
        tf.Tensor
    )  # [B, m, m] inner products of rows with `differences`: (Δg_iᵀΔg_j), type I (Δz_iᵀΔg_j)
    valid: Any  # [B, m] bool, the rows that are not forgotten; without a safeguard (), none ever is


@keras.saving.register_keras_serializable(package="tfdeq")
@dataclasses.dataclass(frozen=True)
class Anderson(Solver):
    """Anderson acceleration.

    With g_k = f(z_k) − z_k and the last m differences ΔZ, ΔG,
    z_{k+1} = z_k + α g_k − (ΔZ + α ΔG) γ, where
    type II:  γ = argmin ‖g_k − ΔG γ‖² + ridge ‖diag(‖Δg_i‖) γ‖²,
    type I:   ΔZᵀΔG γ = ΔZᵀ g_k, solved in the same regularised way.
    Type II is the multisecant form of Broyden's bad method, type I that of the good one. The ridge acts
    on differences scaled to unit length, so the residual does not stagnate at a level set by the ridge.

    Args:
        max_steps: largest number of evaluations of f per sample. Default 30.
        tolerance: relative residual at which a sample has converged. Default 1e-3.
        memory: m, the solver window: number of past differences kept, at least 1. Default 6.
        damping: α in (0, 1]. Default 1.
        ridge: relative to the scaled differences, greater than 0. Default 1e-6.
        kind: 1 or 2, the type. Default 2.

    Raises:
        ValueError: for a setting out of range.

    Source: Walker and Ni, Anderson Acceleration for Fixed-Point Iterations, SIAM J. Numer. Anal.
        49(4), 2011, equation (2.2) and section 2; type I: Fang and Saad, Two Classes of Multisecant
        Methods for Nonlinear Acceleration, Numer. Linear Algebra Appl. 16(3), 2009, section 2.

    Example:
        >>> Anderson(memory=4).memory
        4
    """

    memory: int = 6
    damping: float = 1.0
    ridge: float = 1e-6
    kind: int = 2

    def __post_init__(self):
        super().__post_init__()
        require_positive_integer("memory", self.memory)
        require_damping(self.damping)
        require_positive("ridge", self.ridge)
        if self.kind not in (1, 2):
            raise ValueError(
                f"kind must be 1 or 2, the type of the method; received {self.kind!r}."
            )

    def initial_state(self, z, max_steps=None):
        batch = tf.shape(z)[0]
        rows = history.empty(z, self.memory)
        gram = tf.zeros([batch, self.memory, self.memory], z.dtype)
        gram.set_shape([z.shape[0], self.memory, self.memory])
        known = tf.zeros([batch], tf.bool)
        valid = () if self.safeguard is None else tf.zeros([batch, self.memory], tf.bool)
        return AndersonState(z, tf.zeros_like(z), known, rows, rows, gram, valid)

    def step(self, state, k, z, f_z):
        alpha = tf.constant(self.damping, z.dtype)
        g = f_z - z
        # At the start and after a restart there is no difference, and its row is stored as zeros.
        seen = tf.cast(state.known, z.dtype)[:, None]
        new_difference = seen * (g - state.previous_g)
        new_update = seen * (z - state.previous_z) + alpha * new_difference
        position = (k - 1) % self.memory
        slot = tf.range(self.memory) == position
        differences = history.with_row(state.differences, position, new_difference)
        updates = history.with_row(state.updates, position, new_update)
        if self.kind == 2:
            # Two products with vectors, because XLA is much slower at one with a matrix of two
            # columns.
            row = history.inner_products(differences, new_difference)
            right_side = history.inner_products(differences, g)
            gram = tf.where(slot[:, None], row[:, None, :], state.gram)
            gram = tf.where(slot[None, :], row[:, :, None], gram)
        else:
            new_z = new_update - alpha * new_difference
            row = history.inner_products(differences, new_z)  # Δz_newᵀΔg_j
            # Δz_iᵀ v without a third history: ΔZ = (ΔZ + α ΔG) − α ΔG.
            column, right_side = (
                history.inner_products(updates, v) - alpha * history.inner_products(differences, v)
                for v in (new_difference, g)
            )
            gram = tf.where(slot[None, :], column[:, :, None], state.gram)
            gram = tf.where(slot[:, None], row[:, None, :], gram)
        valid = state.valid
        if self.safeguard is not None:
            # Of forgotten rows only these products are cleared: to clear the rows is a pass over both rings.
            valid = valid | slot
            gram = tf.where(valid[:, :, None] & valid[:, None, :], gram, 0)
            right_side = tf.where(valid, right_side, 0)
        solve = _scaled_ridge_solve if self.kind == 2 else _least_squares
        gamma = solve(gram, right_side, self.ridge)
        correction = history.combination(updates, gamma)
        next_z = z + alpha * g - correction
        known = tf.ones_like(state.known)
        return AndersonState(z, g, known, updates, differences, gram, valid), next_z

    def restart(self, state, mask):
        kept = tf.logical_not(mask)
        return state._replace(known=state.known & kept, valid=state.valid & kept[:, None])


def _scaled_ridge_solve(gram: tf.Tensor, right_side: tf.Tensor, ridge: float) -> tf.Tensor:
    """Solves (G + ridge diag(G)) γ = b per sample; [B, m, m], [B, m] -> [B, m].

    Rows of zeros (slots not filled yet) give γ = 0. Gauss–Jordan elimination without pivoting is stable
    on the scaled matrix, which is positive definite. It takes a few fused operations, while a general
    factorisation could cost more than the cell.
    """
    squares = small_matrices.diagonal(gram)
    filled = squares > 0
    scale = tf.where(filled, tf.math.rsqrt(tf.where(filled, squares, 1)), 0)
    size = gram.shape[-1]
    identity = tf.eye(size, dtype=gram.dtype)
    scaled = gram * scale[:, :, None] * scale[:, None, :]
    # The diagonal is set exactly, also for empty slots, whose rows are then decoupled.
    matrix = scaled * (1 - identity) + tf.constant(1 + ridge, gram.dtype) * identity
    system = tf.concat([matrix, (right_side * scale)[:, :, None]], axis=-1)  # [B, m, m + 1]
    # Samples are the last axis, so that operations on all samples read contiguous memory.
    system = tf.transpose(system, [1, 2, 0])
    for column in range(size):
        pivot_row = system[column] / system[column, column]
        # Minus the unit vector, so that the same subtraction turns the pivot's own row into
        # pivot_row.
        multipliers = system[:, column] - identity[column][:, None]
        system -= multipliers[:, None, :] * pivot_row[None]
    return tf.transpose(system[:, size]) * scale


def _least_squares(matrix: tf.Tensor, right_side: tf.Tensor, ridge: float) -> tf.Tensor:
    """Solves A γ = b in the least-squares sense with a scale-free ridge; [B, m, m], [B, m] -> [B, m].

    Rows and columns of zeros (slots not filled yet) give γ = 0.
    """
    lengths = tf.norm(matrix, axis=2, keepdims=True)
    filled = lengths > 0
    scale = tf.where(filled, 1 / tf.where(filled, lengths, 1), 0)
    scaled = matrix * scale
    normal = tf.matmul(scaled, scaled, transpose_a=True)
    target = tf.linalg.matvec(scaled, right_side * scale[..., 0], transpose_a=True)
    return _scaled_ridge_solve(normal, target, ridge)
