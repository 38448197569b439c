"""The eigenvalue of largest modulus of a linear map, sample by sample, from a Krylov space."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Largest number of vectors in the space; further steps improve its start.
MOST_VECTORS = 30
# The small matrix is raised to the power 2^32; the root of that power's norm is its spectral
# radius.
_SQUARINGS = 32


class KrylovSpace(NamedTuple):
    """The result of m products from the start v: J V = V H + a remainder outside the space."""

    hessenberg: tf.Tensor  # [B, m + 1, m] float64
    log_growth: tf.Tensor  # [B] float64, over the power steps that count towards the growth rate
    growth_steps: int  # number of these steps


def krylov_space(
    product: Callable[[tf.Tensor], tf.Tensor], start: tf.Tensor, steps: int
) -> KrylovSpace:
    """Makes `steps` products: if these are more than the space holds, first powers of J on the start.

    Args:
        product: v -> J v, [B, D] -> [B, D].
        start: [B, D].
        steps: >= 1.
    """
    vectors = min(steps, MOST_VECTORS)
    powers = steps - vectors
    vector, log_growth = _power_steps(product, _unit(start)[0], powers, counted_from=steps // 2)
    batch, size = tf.shape(start)[0], tf.shape(start)[1]
    first = tf.one_hot([0], vectors + 1, dtype=start.dtype)[:, :, None] * vector[:, None, :]
    basis = tf.ensure_shape(first, [start.shape[0], vectors + 1, start.shape[1]])
    matrix = tf.zeros(tf.stack([batch, vectors + 1, vectors]), start.dtype)
    matrix = tf.ensure_shape(matrix, [start.shape[0], vectors + 1, vectors])
    rounding = 10 * float(np.finfo(start.dtype.as_numpy_dtype).eps)

    def body(j, basis, matrix):
        image = tf.reshape(product(basis[:, j]), tf.stack([batch, size]))
        image = tf.ensure_shape(image, start.shape)
        whole = _length(image)
        # Scaled to length 1, so that no square of a very large or small image overflows or
        # underflows.
        image = _divided(image, whole)
        column = tf.zeros_like(matrix[:, :, 0])
        for _ in range(2):  # twice is enough for orthogonality up to rounding
            along = tf.linalg.matvec(basis, image)
            image -= tf.linalg.matvec(basis, along, transpose_a=True)
            column += along
        image, rest = _unit(image)
        # A remainder of rounding size has no meaningful direction: the space is invariant.
        rest = tf.where(rest <= rounding, tf.zeros_like(rest), rest)
        image = tf.where(rest[:, None] == 0, tf.zeros_like(image), image)
        place = tf.one_hot(j + 1, vectors + 1, dtype=image.dtype)
        column = (column + rest[:, None] * place) * whole[:, None]
        basis += place[None, :, None] * image[:, None, :]
        return j + 1, basis, matrix + column[:, :, None] * place[1:]

    _, _, matrix = tf.while_loop(
        lambda j, *_: j < vectors,
        body,
        (tf.constant(0), basis, matrix),
        maximum_iterations=vectors,
        parallel_iterations=1,
    )
    counted = max(powers - steps // 2, 0)
    return KrylovSpace(tf.cast(matrix, tf.float64), log_growth, counted)


def largest_modulus(space: KrylovSpace, rounding: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns max |eigenvalue| and an estimate of its error, [B] float64 each.

    Args:
        space: Krylov space of the map.
        rounding: relative rounding error of the products.
    """
    inner, leaving = space.hessenberg[:, :-1], space.hessenberg[:, -1, -1]
    size = inner.shape[-1]
    scale = tf.sqrt(tf.reduce_sum(tf.square(inner), [1, 2]))
    noise = np.random.default_rng(0).choice([-1.0, 1.0], [size, size])
    disturbed = inner + (rounding * scale)[:, None, None] * noise
    ritz, invariant = _radius_of(inner)
    rounded, _ = _radius_of(disturbed)
    # The relevant Ritz values are exact for a map this close to J.
    last_row = tf.sqrt(tf.reduce_sum(tf.square(invariant[:, -1]), -1))
    residual = tf.abs(leaving) * last_row
    growth = _growth_rate(space)
    # A lower bound for a normal J, even if more eigenvalues share the modulus than the space holds.
    radius = tf.maximum(ritz, tf.minimum(growth, ritz + 2 * residual))
    error = residual + tf.abs(radius - ritz) + tf.abs(rounded - ritz)
    return radius, error


def _power_steps(product, vector, steps, counted_from):
    """Returns J^steps v, scaled to length 1, and the logarithm of its growth from step `counted_from` on."""
    log_growth = tf.zeros(tf.shape(vector)[:1], tf.float64)
    if steps == 0:
        return vector, log_growth

    def body(step, vector, log_growth):
        image, length = _unit(tf.reshape(product(vector), tf.shape(vector)))
        image = tf.ensure_shape(image, vector.shape)
        growth = tf.math.log(tf.cast(length, tf.float64))
        return step + 1, image, log_growth + tf.where(step >= counted_from, growth, 0.0)

    _, vector, log_growth = tf.while_loop(
        lambda step, *_: step < steps,
        body,
        (tf.constant(0), vector, log_growth),
        maximum_iterations=steps,
        parallel_iterations=1,
    )
    return vector, log_growth


def _growth_rate(space: KrylovSpace) -> tf.Tensor:
    """Returns (‖J^n v‖ / ‖J^k v‖)^(1 / (n − k)) over the later half of all products, without new ones."""
    matrix = space.hessenberg
    vectors = matrix.shape[-1]
    first = 0 if space.growth_steps else vectors // 2

    def body(step, power, total):
        image, length = _unit(tf.linalg.matvec(matrix, power))
        counted = tf.where(step >= first, tf.math.log(length), 0.0)
        return step + 1, image[:, :-1], total + counted

    start = tf.one_hot([0], vectors, dtype=tf.float64) + tf.zeros_like(matrix[:, 0])
    _, _, total = tf.while_loop(
        lambda step, *_: step < vectors,
        body,
        (tf.constant(0), start, space.log_growth),
        maximum_iterations=vectors,
        parallel_iterations=1,
    )
    return tf.exp(total / (space.growth_steps + vectors - first))


def _radius_of(matrix: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns ρ(A) = lim ‖A^n‖^(1/n) [B] at n = 2^32, and A^n at norm 1, which spans the dominant space.

    Eigenvalues are not used, because XLA cannot compute those of matrices that are not symmetric.
    """

    def normalised(matrix):
        flat = tf.reshape(
            matrix, tf.stack([tf.shape(matrix)[0], matrix.shape[1] * matrix.shape[2]])
        )
        length = _length(flat)
        return tf.reshape(_divided(flat, length), tf.shape(matrix)), tf.math.log(length)

    def body(k, power, logarithm, weight):
        power, taken = normalised(tf.matmul(power, power))
        power = tf.ensure_shape(power, matrix.shape)
        return k + 1, power, logarithm + weight * taken, weight / 2

    power, logarithm = normalised(matrix)
    power = tf.ensure_shape(power, matrix.shape)
    _, power, logarithm, _ = tf.while_loop(
        lambda k, *_: k < _SQUARINGS,
        body,
        (tf.constant(0), power, logarithm, tf.constant(0.5, tf.float64)),
        maximum_iterations=_SQUARINGS,
        parallel_iterations=1,
    )
    return tf.exp(logarithm), power


def _length(vector: tf.Tensor) -> tf.Tensor:
    """[B, D] -> [B], the norms, without overflow or underflow of the squares."""
    largest = tf.reduce_max(tf.abs(vector), axis=1)
    largest = tf.where(tf.shape(vector)[1] == 0, tf.zeros_like(largest), largest)
    return largest * tf.sqrt(tf.reduce_sum(tf.square(_divided(vector, largest)), axis=1))


def _divided(vector: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Divides; zeros remain zeros, and NaN remains NaN."""
    return vector / tf.where(length == 0, tf.ones_like(length), length)[:, None]


def _unit(vector: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    length = _length(vector)
    return _divided(vector, length), length
