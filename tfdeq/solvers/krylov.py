"""GMRES for (I − J) δ = r, one system per sample of the batch, which needs only products with J."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeq.solvers import history, small_matrices

# Rounding errors of the orthogonalisation, in units of the dtype's precision.
_ROUNDING = 10.0


class KrylovSpace(NamedTuple):
    """The Krylov space of each sample's system; `extend` adds dimensions, `solution` uses it."""

    length: tf.Tensor  # [B] ‖r‖
    basis: tf.Tensor  # [B, m + 1, D] orthonormal rows; zeros for those not computed yet
    triangle: tf.Tensor  # [B, m, m] R of the Hessenberg matrix Q H = R
    rotation: tf.Tensor  # [B, m + 1, m + 1] Q, the product of all Givens rotations
    residual: tf.Tensor  # [B] norm of the remaining part of r
    size: tf.Tensor  # [B] int32, number of dimensions, and of products
    exhausted: tf.Tensor  # [B] bool, whether there is no new direction: δ is exact, or NaN occurred


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
        allowed: [B] int32, largest number of products; 0 gives δ = r, one plain step.
        size: m, the largest dimension of the space.

    Returns:
        δ [B, D], and the products spent [B] int32.

    Source: Saad and Schultz, GMRES, SIAM J. Sci. Stat. Comput. 7(3), 1986, algorithm 4; Gram–Schmidt is
        applied twice, which keeps the basis orthonormal up to rounding.
    """
    space = extend(empty_space(right_side, size), product, target, allowed)
    return tf.where((space.size > 0)[:, None], solution(space), right_side), space.size


def empty_space(right_side: tf.Tensor, size: int) -> KrylovSpace:
    """Returns the space of dimension 0 for r [B, D], with room for `size` dimensions."""
    length = tf.norm(right_side, axis=1)
    first = right_side / tf.where(length > 0, length, 1)[:, None]
    rest = tf.zeros_like(first)[:, None] * tf.ones([size, 1], first.dtype)
    basis = tf.concat([first[:, None], rest], 1)
    basis.set_shape([first.shape[0], size + 1, first.shape[1]])
    batch = tf.shape(first)[0]
    rotation = tf.eye(size + 1, batch_shape=[batch], dtype=first.dtype)
    rotation.set_shape([first.shape[0], size + 1, size + 1])
    triangle = tf.eye(size, batch_shape=[batch], dtype=first.dtype)
    triangle.set_shape([first.shape[0], size, size])
    none = tf.zeros([batch], tf.int32)
    none.set_shape(first.shape[:1])
    return KrylovSpace(length, basis, triangle, rotation, length, none, tf.equal(length, 0))


def extend(
    space: KrylovSpace,
    product: Callable[[tf.Tensor], tf.Tensor],
    target: tf.Tensor,
    allowed: tf.Tensor,
) -> KrylovSpace:
    """Adds dimensions until the target is met, the space is full or the allowed products are spent."""
    most = space.size + allowed
    size = space.triangle.shape[1]

    def active(space: KrylovSpace) -> tf.Tensor:
        room = (space.size < most) & (space.size < size)
        return room & (space.residual > target) & tf.logical_not(space.exhausted)

    return KrylovSpace(
        *tf.while_loop(
            lambda *fields: tf.reduce_any(active(KrylovSpace(*fields))),
            lambda *fields: list(
                _expand(KrylovSpace(*fields), product, active(KrylovSpace(*fields)))
            ),
            list(space),
            maximum_iterations=size,
            parallel_iterations=1,
        )
    )


def solution(space: KrylovSpace) -> tf.Tensor:
    """Returns the δ [B, D] with the smallest residual in the space; 0 if its dimension is 0."""
    size = space.triangle.shape[1]
    used = tf.sequence_mask(space.size, size, dtype=space.basis.dtype)  # [B, m]
    projected = space.length[:, None] * space.rotation[:, :size, 0] * used
    diagonal = small_matrices.diagonal(space.triangle)
    regular = tf.abs(diagonal) > _smallest(diagonal.dtype)
    triangle = small_matrices.with_diagonal(space.triangle, tf.where(regular, diagonal, 1))
    projected = tf.where(regular, projected, 0)
    weights = small_matrices.upper_solve(triangle, projected)
    return history.combination(space.basis[:, :size], weights * used)


def residual_vector(space: KrylovSpace) -> tf.Tensor:
    """Returns r − (I − J) δ [B, D] of that solution, without a product."""
    # In the basis, this is the part that the rotations left below the triangle, rotated back.
    row = tf.gather(space.rotation, space.size, axis=1, batch_dims=1)  # [B, m + 1]
    left = space.length * row[:, 0]
    return left[:, None] * history.combination(space.basis, row)


def _expand(space: KrylovSpace, product, active: tf.Tensor) -> KrylovSpace:
    """Adds one dimension to the space of every active sample."""
    basis, rotation = space.basis, space.rotation
    size = space.triangle.shape[1]
    dtype = basis.dtype
    # A sample that is done does not change; a full space has no next row.
    place = tf.minimum(space.size, size - 1)
    v = tf.gather(basis, place, axis=1, batch_dims=1)
    w = v - product(v)
    whole = tf.norm(w, axis=1)
    first = history.inner_products(basis, w)
    w -= history.combination(basis, first)
    second = history.inner_products(basis, w)
    w -= history.combination(basis, second)
    below = tf.norm(w, axis=1)
    # If only rounding is left, the space contains the solution and there is no new direction.
    below = tf.where(below > _ROUNDING * np.finfo(dtype.as_numpy_dtype).eps * whole, below, 0)
    row, next_row = (tf.one_hot(index, size + 1, dtype=dtype) for index in (place, place + 1))
    column = first + second + below[:, None] * next_row  # of the Hessenberg matrix, [B, m + 1]

    # One Givens rotation of this row and the next makes the rotated column end at this row.
    column = tf.linalg.matvec(rotation, column)
    a, b = tf.reduce_sum(column * row, axis=1), tf.reduce_sum(column * next_row, axis=1)
    radius = tf.sqrt(a * a + b * b)
    regular = radius > 0
    cosine = tf.where(regular, a / tf.where(regular, radius, 1), 1)[:, None, None]
    sine = tf.where(regular, b / tf.where(regular, radius, 1), 0)[:, None, None]
    upper = tf.linalg.matvec(rotation, row, transpose_a=True)[:, None, :]
    lower = tf.linalg.matvec(rotation, next_row, transpose_a=True)[:, None, :]
    is_row, is_next = row[:, :, None] > 0, next_row[:, :, None] > 0
    rotated = tf.where(is_row, cosine * upper + sine * lower, rotation)
    rotated = tf.where(is_next, cosine * lower - sine * upper, rotated)
    column = (column * (1 - row) * (1 - next_row) + radius[:, None] * row)[:, :size]

    finite = tf.math.is_finite(radius)
    usable = active & finite
    chosen = usable[:, None, None]
    is_column = (row[:, :size] > 0)[:, None, :]
    unit = w / tf.where(below > 0, below, 1)[:, None]
    rotation = tf.where(chosen, rotated, rotation)
    left = space.length * tf.abs(tf.reduce_sum(rotation[:, :, 0] * next_row, axis=1))
    return KrylovSpace(
        length=space.length,
        basis=tf.where(chosen & is_next, unit[:, None, :], basis),
        triangle=tf.where(chosen & is_column, column[:, :, None], space.triangle),
        rotation=rotation,
        residual=tf.where(usable, left, space.residual),
        size=space.size + tf.cast(usable, tf.int32),
        exhausted=space.exhausted | (active & ((below <= 0) | tf.logical_not(finite))),
    )


def _smallest(dtype: tf.DType) -> float:
    return 1e-30 if dtype == tf.float32 else 1e-200
