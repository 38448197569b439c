"""The spectral norm of a matrix from above: a bound for weights that promises something."""

import keras
from keras import ops

from tfdeq.solvers.solver import require_positive

# Squarings of the Gram matrix; the bound is at most d^(2^−(_SQUARINGS + 2)) too large.
_SQUARINGS = 6
# Above the rounding of float32 products, so that the bound stays one.
_ROUNDING = 1e-5
_TINY = 1e-30


def spectral_norm_bound(matrix):
    """Returns an upper bound of ‖W‖₂, the largest singular value, that is nearly sharp.

    With G = WᵀW, ‖W‖₂ <= ‖G^(2^n)‖_F^(1 / 2^(n+1)) <= d^(1 / 2^(n+2)) ‖W‖₂ for d the smaller side:
    at n = 6, 2 % too large for d = 256, and less as soon as one singular value stands out. Power
    iteration, the usual estimate, comes from below, and so guarantees nothing. n + 1 products of
    d × d matrices. Differentiable.

    Args:
        matrix: [rows, columns], floating.

    Returns:
        A scalar of the matrix's dtype, float32 at least.

    Raises:
        ValueError: for anything but a matrix.

    Source: Delattre, Barthélemy, Araujo, Allauzen, Efficient Bound of Lipschitz Constant for
        Convolutional Layers by Gram Iteration, arXiv:2305.16173.

    Example:
        >>> round(float(spectral_norm_bound(tf.constant([[3.0, 0.0], [0.0, -4.0]]))), 3)
        4.0
    """
    matrix = ops.convert_to_tensor(matrix)
    if len(matrix.shape) != 2:
        raise ValueError(f"spectral_norm_bound takes a matrix; received shape {matrix.shape}.")
    if keras.backend.standardize_dtype(matrix.dtype) in ("float16", "bfloat16"):
        matrix = ops.cast(matrix, "float32")
    rows, columns = matrix.shape
    transposed = ops.transpose(matrix)
    gram = ops.matmul(matrix, transposed) if rows < columns else ops.matmul(transposed, matrix)
    # G^(2^k) is kept at unit Frobenius norm; `logarithm` is what was taken out, as log ‖·‖ / 2^k.
    logarithm = 0.0
    for power in range(_SQUARINGS + 1):
        length = ops.sqrt(ops.sum(gram * gram)) + _TINY
        logarithm = logarithm + ops.log(length) / 2**power
        gram = gram / length
        if power < _SQUARINGS:
            gram = ops.matmul(gram, gram)
    return ops.exp(0.5 * logarithm) * (1.0 + _ROUNDING)


@keras.saving.register_keras_serializable(package="tfdeq")
class SpectralNorm(keras.constraints.Constraint):
    """Keeps the spectral norm of a weight at or below a bound.

    After each update W ← W min(1, bound / σ), σ the bound of `tfdeq.spectral_norm_bound`. A weight of
    more than two dimensions, a convolution's kernel, is taken as the matrix [everything else, last
    dimension]; the norm of a convolution of k positions is at most √k times that matrix's.

    Args:
        bound: > 0. Default 1.

    Raises:
        ValueError: for a bound that is not positive.

    Source: Miyato, Kataoka, Koyama, Yoshida, arXiv:1802.05957; here as a bound, by projection.

    Example:
        >>> dense = keras.layers.Dense(3, kernel_constraint=SpectralNorm(0.9))
    """

    def __init__(self, bound: float = 1.0):
        require_positive("bound", bound)
        self.bound = float(bound)

    def __call__(self, w):
        matrix = ops.reshape(w, (-1, w.shape[-1]))
        scale = ops.minimum(1.0, self.bound / spectral_norm_bound(matrix))
        return w * ops.cast(scale, w.dtype)

    def get_config(self):
        return {"bound": self.bound}
