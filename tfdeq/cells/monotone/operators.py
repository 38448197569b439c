"""Properties of a strongly monotone linear operator, given as matrices, for splitting methods."""

import tensorflow as tf
from ml_dtypes import finfo

from tfdeq.spectral_norm import spectral_norm_bounds

# Bound of the rounding error of sums over a matrix's entries, in units of rounding times its trace.
_ROUNDING = 8.0


def widened(matrices: tf.Tensor) -> tf.Tensor:
    """Returns half-precision matrices as float32, and others unchanged."""
    return tf.cast(matrices, tf.float32) if matrices.dtype.size < 4 else matrices


def lipschitz(matrices: tf.Tensor) -> tf.Tensor:
    """Returns a scalar L >= ‖M‖₂ for the block-diagonal M, at most a few percent too large.

    matrices: [n, d, d], the blocks.
    """
    return tf.reduce_max(spectral_norm_bounds(matrices))


def cocoercivity(matrices: tf.Tensor) -> tf.Tensor:
    """Returns a scalar β with vᵀM v >= β ‖M v‖² for all v, at most a few percent too small.

    With S = (M + Mᵀ)/2 = C Cᵀ, vᵀM v = ‖Cᵀv‖², so 1/β = ‖M C^(−T)‖₂². For a symmetric M, β is 1/‖M‖₂.
    The bound m/L², which needs only m and L, is smaller, by a larger factor the larger L/m is.

    matrices: [n, d, d], the blocks of M, with a positive definite symmetric part.
    """
    matrices = without_non_finite(matrices)
    symmetric = (matrices + tf.linalg.matrix_transpose(matrices)) / 2
    # Adds what rounding may have taken from a small m, because a factorisation that fails is an
    # error.
    trace = tf.reduce_max(tf.linalg.trace(symmetric))
    lost = tf.constant(_ROUNDING * finfo(matrices.dtype.as_numpy_dtype).eps, trace.dtype) * trace
    identity = tf.eye(tf.shape(matrices)[-1], dtype=matrices.dtype)
    factor = tf.linalg.cholesky(symmetric + lost * identity)
    # C^(−1) Mᵀ, the transpose of M C^(−T).
    scaled = tf.linalg.triangular_solve(factor, tf.linalg.matrix_transpose(matrices))
    return 1 / tf.square(lipschitz(scaled))


def resolvent_matrices(matrices: tf.Tensor, step_size: tf.Tensor) -> tf.Tensor:
    """Returns (I + α M)^(−1), [n, d, d] like the blocks M."""
    identity = tf.eye(tf.shape(matrices)[-1], dtype=matrices.dtype)
    return tf.linalg.inv(without_non_finite(identity + step_size * matrices))


def without_non_finite(matrices: tf.Tensor) -> tf.Tensor:
    """Returns the matrices [n, d, d], with I for all if one has a NaN or infinity.

    Factorising such a matrix would raise an error. With I instead, the NaN of the cell ends the solve.
    """
    finite = tf.reduce_all(tf.math.is_finite(matrices))
    identity = tf.eye(tf.shape(matrices)[-1], dtype=matrices.dtype)
    return tf.where(finite, matrices, identity)
