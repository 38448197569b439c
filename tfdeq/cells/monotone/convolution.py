"""A convolutional cell with exactly one equilibrium for every image."""

import keras
import tensorflow as tf
from keras import ops

from tfdeq.cells.linear import checked_scale
from tfdeq.cells.monotone import circular, operators
from tfdeq.cells.monotone.parts import ExactParts
from tfdeq.solvers.solver import require_positive, require_positive_integer
from tfdeq.solvers.splitting import Splitting


@keras.saving.register_keras_serializable(package="tfdeq")
class MonotoneConvolution(keras.layers.Layer):
    """f(z, x) = relu(W z + U x + b), W = (1 − m) I − AᵀA + B − Bᵀ, with convolutions A, B and U.

    The guarantees are those of `MonotoneDense`: exactly one equilibrium for every image, and the
    Lipschitz constant ‖U‖₂ / m. The convolutions are circular (opposite sides of the image are
    neighbours), so the Fourier transform turns I − W into one small matrix per frequency.
    `tfdeq.PeacemanRachford` computes its resolvent from these matrices once per solve, and both splitting
    methods compute their step sizes from them.

    W is one convolution with 2k − 1 rows and columns, whose kernel `inject` computes once per solve.
    XLA's convolutions are slow on CPUs, so do not use jit_compile there.

    Args:
        filters: C, channels of the state.
        kernel_size: k of A, B and U, odd. Default 3.
        monotonicity: m > 0; see `MonotoneDense`. Default 0.1.
        recurrent_scale: initial scale of A and B, >= 0: their entries start as N(0, 1 / (k² C)) times
            it. Default 0.5.

    Call arguments: z [B, H, W, C]; x from `inject`, for images [B, H, W, n] of any size. Returns [B, H,
    W, C].

    Raises:
        ValueError: for settings out of range, or an input that is not a batch of images.

    Source: Winston, Kolter, Monotone operator equilibrium networks, arXiv:2006.08591, section 4; the
        Lipschitz constant: Pabbaraju, Winston, Kolter, ICLR 2021, theorem 1.

    Example:
        >>> from tfdeq import DEQLayer
        >>> layer = DEQLayer(MonotoneConvolution(4), solver="peaceman_rachford")
        >>> layer(keras.ops.ones([2, 5, 6, 3])).shape
        TensorShape([2, 5, 6, 4])
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 3,
        monotonicity: float = 0.1,
        recurrent_scale: float = 0.5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        require_positive_integer("filters", filters)
        require_positive_integer("kernel_size", kernel_size)
        require_positive("monotonicity", monotonicity)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd; received {kernel_size!r}.")
        self.filters = filters
        self.kernel_size = kernel_size
        self.monotonicity = float(monotonicity)
        self.recurrent_scale = checked_scale("recurrent_scale", recurrent_scale)
        settings = {"filters": filters, "size": kernel_size, "dtype": self.dtype_policy}
        self.symmetric = circular.CircularKernel(
            **settings, scale=self.recurrent_scale, name="symmetric"
        )
        self.skew = circular.CircularKernel(**settings, scale=self.recurrent_scale, name="skew")
        self.injection = circular.CircularKernel(**settings, use_bias=True, name="injection")

    def recurrent_kernel(self):
        """Returns W's kernel [2k − 1, 2k − 1, C, C], in the weights' dtype."""
        for part in (self.symmetric, self.skew):
            if not part.built:
                part.build((None, None, None, self.filters))
        a, b = (ops.convert_to_tensor(part.kernel) for part in (self.symmetric, self.skew))
        reach = self.kernel_size // 2
        identity = ops.eye(self.filters, dtype=a.dtype)[None, None]
        identity = circular.padded(identity, 2 * reach)
        skew = circular.padded(b - circular.adjoint_kernel(b), reach)
        square = circular.composed(a, circular.adjoint_kernel(a))
        return (1 - self.monotonicity) * identity - square + skew

    def inject(self, x):
        """Returns the terms of the images x [B, H, W, n] that are the same in every application.

        input: U x + b [B, H, W, C]. kernel: W [1, 2k − 1, 2k − 1, C, C].
        """
        if len(x.shape) != 4:
            raise ValueError(
                "MonotoneConvolution takes images [batch, rows, columns, channels]; received shape "
                f"{tuple(x.shape)}."
            )
        kernel = ops.cast(self.recurrent_kernel(), self.compute_dtype)
        return {"input": self.injection(x), "kernel": kernel[None]}

    def initial_state(self, x):
        """Returns zeros [B, H, W, C]."""
        return ops.zeros((*ops.shape(x)[:-1], self.filters), dtype=self.compute_dtype)

    def call(self, z, x):
        return ops.relu(_affine(z, x))

    def splitting(self, x):
        """Returns the parts of the cell as a `tfdeq.solvers.splitting.Splitting`; x: from `inject`."""
        kernel = operators.widened(x["kernel"][0])
        size = _size(x["input"])

        def operator():
            symbol = circular.symbol(kernel, size)
            return tf.eye(2 * self.filters, dtype=kernel.dtype) - symbol

        def resolvent(step_size):
            inverse = operators.resolvent_matrices(operator(), tf.cast(step_size, kernel.dtype))
            return lambda v: tf.cast(
                circular.apply_symbol(tf.cast(v, kernel.dtype), inverse, size), v.dtype
            )

        return Splitting(
            affine=lambda z: tf.cast(_affine(tf.cast(z, x["kernel"].dtype), x), z.dtype),
            projection=tf.nn.relu,
            resolvent=resolvent,
            lipschitz=lambda: operators.lipschitz(operator()),
            cocoercivity=lambda: operators.cocoercivity(operator()),
        )

    def exact_parts(self, x):
        """Returns the cell for the images x [B, H, W, n] as `ExactParts`, for `tfdeq.certified_radius`."""
        kernel, projection = (
            tf.cast(ops.cast(weight, self.compute_dtype), tf.float64)
            for weight in (self.recurrent_kernel(), self.injection.kernel)
        )
        bias = tf.cast(ops.convert_to_tensor(self.injection.bias), tf.float64)
        constant = circular.circular_convolution(tf.cast(x, tf.float64), projection) + bias
        size = _size(x)
        identity = tf.eye(2 * self.filters, dtype=tf.float64)
        return ExactParts(
            affine=lambda z: circular.circular_convolution(z, kernel) + constant,
            recurrent=lambda z: circular.circular_convolution(z, kernel),
            operator=identity - circular.symbol(kernel, size),
            injection=circular.symbol(projection, size),
            transform=lambda z: circular.transformed(z, size),
            weights=circular.frequency_weights(size),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "monotonicity": self.monotonicity,
            "recurrent_scale": self.recurrent_scale,
        }


def _affine(z, x):
    return circular.circular_convolution(z, x["kernel"][0]) + x["input"]


def _size(images):
    """Returns (H, W), as Python integers where they are known."""
    known, shape = images.shape, tf.shape(images)
    return tuple(shape[axis] if known[axis] is None else known[axis] for axis in (1, 2))
