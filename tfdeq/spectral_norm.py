"""An upper bound of a matrix's spectral norm, and a weight constraint that uses it."""

import keras
import tensorflow as tf
from keras import ops
from ml_dtypes import finfo  # numpy's finfo does not know bfloat16

from tfdeq.solvers.solver import require_positive

# Number of squarings of the Gram matrix; the bound is too large by at most the factor
# d^(2^−(_SQUARINGS + 2)).
_SQUARINGS = 6
# More than the rounding error of float32 products, so that the result stays an upper bound.
_ROUNDING = 1e-5
# The same for GPUs that round the factors of float32 products to TensorFloat-32 (11 bits).
_TENSOR_FLOAT_ROUNDING = 2e-3
_HALF = ("float16", "bfloat16")


def spectral_norm_bound(matrix):
    """Returns a nearly sharp upper bound of ‖W‖₂, the largest singular value.

    With G = WᵀW, ‖W‖₂ <= ‖G^(2^n)‖_F^(1 / 2^(n+1)) <= d^(1 / 2^(n+2)) ‖W‖₂ for d the smaller side:
    at n = 6 the bound is 2 % too large for d = 256, and closer if one singular value is much larger
    than the others. Power iteration, the usual estimate, approaches the norm from below, so it is
    no bound. The cost is n + 1 products of d × d matrices. The bound is differentiable; at W = 0,
    where the norm is not differentiable, the gradient is 0. The matrix is first scaled to a largest
    entry of 1, so the bound is equally accurate for very small and very large matrices.

    Args:
        matrix: [rows, columns], floating.

    Returns:
        A scalar of the matrix's dtype, float32 at least.

    Raises:
        ValueError: if matrix does not have two dimensions.

    Source: Delattre, Barthélemy, Araujo, Allauzen, Efficient Bound of Lipschitz Constant for
        Convolutional Layers by Gram Iteration, arXiv:2305.16173.

    Example:
        >>> round(float(spectral_norm_bound(tf.constant([[3.0, 0.0], [0.0, -4.0]]))), 3)
        4.0
    """
    matrix = ops.convert_to_tensor(matrix)
    if len(matrix.shape) != 2:
        raise ValueError(f"spectral_norm_bound takes a matrix; received shape {matrix.shape}.")
    return spectral_norm_bounds(matrix)


def spectral_norm_bounds(matrices):
    """Returns the same for each of several matrices, [..., rows, columns] -> [...]."""
    matrices = ops.convert_to_tensor(matrices)
    if _dtype(matrices) in _HALF:
        matrices = ops.cast(matrices, "float32")
    # The scale counts as a constant: the bound is homogeneous, so the gradient is still exact.
    largest = ops.stop_gradient(ops.max(ops.abs(matrices), axis=(-2, -1), keepdims=True))
    zero = ops.equal(largest, 0)
    matrices = ops.where(zero, ops.ones_like(matrices), matrices / ops.where(zero, 1, largest))
    rows, columns = matrices.shape[-2:]
    transposed = ops.swapaxes(matrices, -2, -1)
    factors = (matrices, transposed) if rows < columns else (transposed, matrices)
    gram = ops.matmul(*factors)
    # G^(2^k) is kept at unit Frobenius norm; `logarithm` holds the factors taken out, as log ‖·‖ /
    # 2^k.
    logarithm = 0.0
    for power in range(_SQUARINGS + 1):
        length = ops.sqrt(ops.sum(gram * gram, axis=(-2, -1), keepdims=True))
        logarithm = logarithm + ops.log(length) / 2**power
        gram = gram / length
        if power < _SQUARINGS:
            gram = ops.matmul(gram, gram)
    bounds = largest * ops.exp(0.5 * logarithm) * (1.0 + _rounding(_dtype(matrices)))
    return bounds[..., 0, 0]


def scaled_to_norm(matrix, bound: float, dtype: str):
    """Returns W min(1, bound / σ) with σ >= ‖W‖₂, rounded to a dtype; its norm is at most bound there too.

    Half precision has a relative rounding error of at most u: 2^−8 in bfloat16, 2^−11 in float16.
    Since the errors of the entries seldom add up, σ is first multiplied by 1 + 2u, and the rounded
    matrix is checked again. If its norm is still too large, σ is multiplied by 1 + u √d, with d the
    smaller side, which always suffices: ‖E‖₂ <= ‖E‖_F <= u ‖W‖_F <= u √d ‖W‖₂ for the rounding E.

    Args:
        matrix: [rows, columns], floating.
        bound: > 0.
        dtype: of the result.
    """
    dtype = keras.backend.standardize_dtype(dtype)
    if _dtype(matrix) in _HALF:
        matrix = ops.cast(matrix, "float32")
    sigma = spectral_norm_bound(matrix)

    def scaled(bound, sigma):
        # Not minimum(1, bound / sigma), whose gradient at sigma = 0 is not finite.
        return ops.cast(matrix * (bound / ops.maximum(sigma, bound)), dtype)

    if dtype not in _HALF:  # the bound's own margin covers this rounding
        return scaled(bound, sigma)
    information = finfo(dtype)
    unit = float(information.eps) / 2
    rows, columns = matrix.shape
    near = scaled(bound, sigma * (1 + 2 * unit))
    # Entries too small for the dtype have an absolute rounding error instead of a relative one.
    lost = (rows * columns) ** 0.5 * float(information.smallest_subnormal)
    sure = scaled(max(bound - lost, 1e-30), sigma * (1 + unit * min(rows, columns) ** 0.5))
    return ops.where(spectral_norm_bound(near) <= bound, near, sure)


def _dtype(matrix) -> str:
    return keras.backend.standardize_dtype(matrix.dtype)


def _rounding(dtype: str) -> float:
    coarse = (
        dtype == "float32"
        and tf.config.list_physical_devices("GPU")
        and tf.config.experimental.tensor_float_32_execution_enabled()
    )
    return _TENSOR_FLOAT_ROUNDING if coarse else _ROUNDING


@keras.saving.register_keras_serializable(package="tfdeq")
class SpectralNorm(keras.constraints.Constraint):
    """Keeps the spectral norm of a weight at or below a bound.

    After each update, W ← W min(1, bound / σ), where σ is the bound of `tfdeq.spectral_norm_bound`.
    The bound holds for the stored weight, also in half precision. A layer that computes in a lower
    precision than it stores rounds the weight again, which may raise its norm by the relative
    amount 2^−8 (2^−11 in float16). A weight with more than two dimensions, such as a convolution's
    kernel, is treated as the matrix [everything else, last dimension]; the norm of a convolution
    over k positions is at most √k times that of this matrix.

    Args:
        bound: > 0. Default 1.

    Raises:
        ValueError: for a bound that is not positive.

    Source: Miyato, Kataoka, Koyama, Yoshida, arXiv:1802.05957; here with an upper bound, and by
    projection.

    Example:
        >>> dense = keras.layers.Dense(3, kernel_constraint=SpectralNorm(0.9))
    """

    def __init__(self, bound: float = 1.0):
        require_positive("bound", bound)
        self.bound = float(bound)

    def __call__(self, w):
        matrix = ops.reshape(w, (-1, w.shape[-1]))
        return ops.reshape(scaled_to_norm(matrix, self.bound, w.dtype), w.shape)

    def get_config(self):
        return {"bound": self.bound}
