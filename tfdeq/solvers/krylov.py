"""GMRES for (I − J) δ = r, a system for each sample of the batch, from products with J alone."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeq.solvers import history

# Rounding errors of the orthogonalisation, in units of the dtype's precision.
_ROUNDING = 10.0


class _ArnoldiState(NamedTuple):
    j: tf.Tensor  # [] int32, products made in the loop
    basis: tf.Tensor  # [B, m + 1, D] orthonormal rows; zeros where none is yet
    triangle: tf.Tensor  # [B, m, m] R of the Hessenberg matrix Q H = R
    rotation: tf.Tensor  # [B, m + 1, m + 1] Q, the product of all Givens rotations
    residual: tf.Tensor  # [B] norm of what is left of r
    spent: tf.Tensor  # [B] int32, products made for the sample
    active: tf.Tensor  # [B] bool, whether the sample goes on


def gmres(
    product: Callable[[tf.Tensor], tf.Tensor],
    right_side: tf.Tensor,
    target: tf.Tensor,
    allowed: tf.Tensor,
    size: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Approximates δ = (I − J)⁻¹ r in the Krylov space of each sample, from δ = 0.

    Args:
        product: v -> J v, [B, D] -> [B, D].
        right_side: [B, D], r.
        target: [B], the norm of r − (I − J) δ at which a sample is done.
        allowed: [B] int32, products at most; 0 gives δ = r, one plain step.
        size: m, the largest dimension of the space.

    Returns:
        δ [B, D], and the products spent [B] int32.

    Source: Saad and Schultz, GMRES, SIAM J. Sci. Stat. Comput. 7(3), 1986, algorithm 4; Gram–Schmidt
        is made twice, which keeps the basis orthonormal to rounding.
    """
    length = tf.norm(right_side, axis=1)
    start = _start(right_side, length, size, (length > target) & (allowed > 0))
    end = _ArnoldiState(
        *tf.while_loop(
            lambda *fields: tf.reduce_any(_ArnoldiState(*fields).active),
            lambda *fields: list(_expand(_ArnoldiState(*fields), product, length, target, allowed)),
            list(start),
            maximum_iterations=size,
            parallel_iterations=1,
        )
    )
    used = tf.sequence_mask(end.spent, size, dtype=right_side.dtype)  # [B, m]
    projected = length[:, None] * end.rotation[:, :size, 0] * used
    diagonal = tf.linalg.diag_part(end.triangle)
    regular = tf.abs(diagonal) > _smallest(diagonal.dtype)
    triangle = tf.linalg.set_diag(end.triangle, tf.where(regular, diagonal, 1))
    projected = tf.where(regular, projected, 0)
    weights = tf.linalg.triangular_solve(triangle, projected[..., None], lower=False)[..., 0]
    delta = history.combination(end.basis[:, :size], weights * used)
    return tf.where((end.spent > 0)[:, None], delta, right_side), end.spent


def _start(r: tf.Tensor, length: tf.Tensor, size: int, active: tf.Tensor) -> _ArnoldiState:
    first = r / tf.where(length > 0, length, 1)[:, None]
    basis = tf.concat(
        [first[:, None], tf.zeros_like(first)[:, None] * tf.ones([size, 1], r.dtype)], 1
    )
    basis.set_shape([r.shape[0], size + 1, r.shape[1]])
    batch = tf.shape(r)[0]
    rotation = tf.eye(size + 1, batch_shape=[batch], dtype=r.dtype)
    rotation.set_shape([r.shape[0], size + 1, size + 1])
    triangle = tf.eye(size, batch_shape=[batch], dtype=r.dtype)
    triangle.set_shape([r.shape[0], size, size])
    spent = tf.zeros([batch], tf.int32)
    return _ArnoldiState(tf.constant(0), basis, triangle, rotation, length, spent, active)


def _expand(state: _ArnoldiState, product, length, target, allowed) -> _ArnoldiState:
    """Adds one dimension to the Krylov space of every active sample."""
    j, basis, rotation = state.j, state.basis, state.rotation
    size = state.triangle.shape[1]
    dtype = basis.dtype
    v = tf.gather(basis, j, axis=1)
    w = v - product(v)
    whole = tf.norm(w, axis=1)
    first = history.inner_products(basis, w)
    w -= history.combination(basis, first)
    second = history.inner_products(basis, w)
    w -= history.combination(basis, second)
    below = tf.norm(w, axis=1)
    # Rounding alone is left: the space holds the solution, and there is no new direction.
    below = tf.where(below > _ROUNDING * np.finfo(dtype.as_numpy_dtype).eps * whole, below, 0)
    row, next_row = (tf.one_hot(index, size + 1, dtype=dtype) for index in (j, j + 1))
    column = first + second + below[:, None] * next_row  # of the Hessenberg matrix, [B, m + 1]

    # One Givens rotation of rows j and j + 1 makes the rotated column end at j.
    column = tf.linalg.matvec(rotation, column)
    a, b = tf.linalg.matvec(column, row), tf.linalg.matvec(column, next_row)
    radius = tf.sqrt(a * a + b * b)
    regular = radius > 0
    cosine = tf.where(regular, a / tf.where(regular, radius, 1), 1)[:, None, None]
    sine = tf.where(regular, b / tf.where(regular, radius, 1), 0)[:, None, None]
    upper = tf.linalg.matvec(rotation, row, transpose_a=True)[:, None, :]
    lower = tf.linalg.matvec(rotation, next_row, transpose_a=True)[:, None, :]
    is_row, is_next = row[None, :, None] > 0, next_row[None, :, None] > 0
    rotated = tf.where(is_row, cosine * upper + sine * lower, rotation)
    rotated = tf.where(is_next, cosine * lower - sine * upper, rotated)
    column = (column * (1 - row) * (1 - next_row) + radius[:, None] * row)[:, :size]

    finite = tf.math.is_finite(radius)
    active = state.active & finite
    chosen = active[:, None, None]
    is_column = (row[:size] > 0)[None, None, :]
    triangle = tf.where(chosen & is_column, column[:, :, None], state.triangle)
    unit = w / tf.where(below > 0, below, 1)[:, None]
    basis = tf.where(chosen & is_next, unit[:, None, :], basis)
    rotation = tf.where(chosen, rotated, rotation)
    left = length * tf.abs(tf.linalg.matvec(rotation[:, :, 0], next_row))
    residual = tf.where(active, left, state.residual)
    # The product of a sample that became NaN is spent, and the sample goes no further.
    spent = state.spent + tf.cast(active, tf.int32)
    goes_on = active & (residual > target) & (spent < allowed) & (below > 0)
    return _ArnoldiState(j + 1, basis, triangle, rotation, residual, spent, goes_on)


def _smallest(dtype: tf.DType) -> float:
    return 1e-30 if dtype == tf.float32 else 1e-200
