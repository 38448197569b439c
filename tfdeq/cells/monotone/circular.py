"""Circular convolutions of images: kernels, their products and adjoints, and their Fourier symbols."""

import math

import keras
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable(package="tfdeq")
class CircularKernel(keras.layers.Layer):
    """A circular convolution, for which opposite sides of the image are neighbours.

    Args:
        filters: channels of the output.
        size: rows and columns of the kernel, odd.
        scale: the kernel starts as N(0, 1 / fan_in) times this number, >= 0. Default 1.
        use_bias: whether to add a bias. Default False.

    Call arguments: x [B, H, W, n]. Returns [B, H, W, filters].

    Example:
        >>> CircularKernel(2, 3)(keras.ops.ones([1, 4, 5, 3])).shape
        TensorShape([1, 4, 5, 2])
    """

    def __init__(
        self, filters: int, size: int, scale: float = 1.0, use_bias: bool = False, **kwargs
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.size = size
        self.scale = float(scale)
        self.use_bias = use_bias
        self.kernel = self.bias = None

    def build(self, shape):
        initializer = "zeros"
        if self.scale:
            initializer = keras.initializers.VarianceScaling(
                self.scale**2, "fan_in", "untruncated_normal"
            )
        kernel = (self.size, self.size, shape[-1], self.filters)
        self.kernel = self.add_weight(shape=kernel, initializer=initializer, name="kernel")
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")
        self.built = True

    def call(self, x):
        y = circular_convolution(x, ops.convert_to_tensor(self.kernel))
        return y if self.bias is None else y + self.bias

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "size": self.size,
            "scale": self.scale,
            "use_bias": self.use_bias,
        }


def circular_convolution(x, kernel, stride: int = 1):
    """Returns y[p] = Σ_δ x[stride p + δ] K[δ], with places modulo the image's size.

    Args:
        x: [B, H, W, n]. kernel: [k, k, n, C], k odd, with δ = 0 in the middle.
        stride: must divide H and W. Default 1.

    Returns:
        [B, H / stride, W / stride, C].
    """
    reach = kernel.shape[0] // 2
    wrapped = _wrapped(_wrapped(x, 1, reach), 2, reach)
    return ops.conv(wrapped, kernel, stride, padding="valid")


def adjoint_convolution(y, kernel, stride: int = 1):
    """Applies the adjoint of `circular_convolution` with this kernel and stride.

    Args:
        y: [B, H, W, C]. kernel: [k, k, n, C].

    Returns:
        [B, stride H, stride W, n].
    """
    if stride > 1:
        # Zeros between the places.
        channels = (stride**2 - 1) * y.shape[-1]
        y = tf.nn.depth_to_space(tf.pad(y, [[0, 0], [0, 0], [0, 0], [0, channels]]), stride)
    return circular_convolution(y, adjoint_kernel(kernel))


def adjoint_kernel(kernel):
    """Returns the kernel [k, k, C, n] of the adjoint convolution: K[−δ]ᵀ."""
    return ops.swapaxes(ops.flip(kernel, axis=(0, 1)), 2, 3)


def padded(kernel, reach: int):
    """Returns the kernel with `reach` more places of zeros on each side."""
    return ops.pad(kernel, [[reach, reach], [reach, reach], [0, 0], [0, 0]])


def composed(first, second):
    """Returns the kernel [2k − 1, 2k − 1, n, p] of one convolution followed by another.

    first: [k, k, n, C]. second: [k, k, C, p].
    """
    size = first.shape[0]
    total = 0.0
    for row in range(size):
        for column in range(size):
            part = ops.matmul(first, second[row, column])
            places = [[row, size - 1 - row], [column, size - 1 - column], [0, 0], [0, 0]]
            total = total + ops.pad(part, places)
    return total


def symbol(kernel: tf.Tensor, size: tuple) -> tf.Tensor:
    """Returns the Fourier transform of a circular convolution, as real matrices.

    At frequency ω a convolution multiplies x̂(ω), a row of n complex numbers, by K̂(ω) = Σ_δ K[δ]
    e^(iωδ). With real and imaginary part side by side, this is [Re x̂, Im x̂] times [[Re K̂, Im K̂],
    [−Im K̂, Re K̂]], a real matrix that has each singular value of K̂(ω) twice. The other half of the
    frequencies has the conjugate values and is omitted.

    Args:
        kernel: [k, k, n, C], k odd. size: (H, W).

    Returns:
        [H (W // 2 + 1), 2n, 2C].
    """
    rows, columns = size
    dtype = kernel.dtype
    taps, channels = kernel.shape[0], kernel.shape[2:]
    place = tf.range(taps) - taps // 2
    # Whole turns are removed from the integers, so the angle is equally exact for large images.
    down = tf.math.floormod(tf.range(rows)[:, None] * place, rows)
    across = tf.math.floormod(tf.range(columns // 2 + 1)[:, None] * place, columns)
    down, across = (
        tf.cast(part, dtype) / tf.cast(count, dtype)
        for part, count in ((down, rows), (across, columns))
    )
    angle = 2 * math.pi * (down[:, None, :, None] + across[None, :, None, :])
    angle = tf.reshape(angle, [-1, taps * taps])
    flat = tf.reshape(kernel, [taps * taps, -1])
    real, imaginary = (
        tf.reshape(tf.matmul(part, flat), [-1, *channels])
        for part in (tf.cos(angle), tf.sin(angle))
    )
    upper = tf.concat([real, imaginary], axis=-1)
    return tf.concat([upper, tf.concat([-imaginary, real], axis=-1)], axis=-2)


def apply_symbol(x: tf.Tensor, symbol: tf.Tensor, size: tuple) -> tf.Tensor:
    """Applies a symbol to images x [B, H, W, n] of its size; returns [B, H, W, C]."""
    rows, columns = size
    channels = symbol.shape[-1] // 2
    real, imaginary = tf.split(tf.matmul(transformed(x, size), symbol), 2, axis=-1)
    result = tf.transpose(tf.complex(real, imaginary), [1, 2, 0])
    result = tf.reshape(result, [tf.shape(x)[0], channels, rows, columns // 2 + 1])
    result = tf.signal.irfft2d(result, fft_length=[rows, columns])
    return tf.transpose(result, [0, 2, 3, 1])


def transformed(x: tf.Tensor, size: tuple) -> tf.Tensor:
    """Returns the Fourier transform of images x [B, H, W, n], [H (W // 2 + 1), B, 2n]: [Re x̂, Im x̂]."""
    rows, columns = size
    result = tf.signal.rfft2d(tf.transpose(x, [0, 3, 1, 2]))
    result = tf.reshape(result, [tf.shape(x)[0], x.shape[-1], rows * (columns // 2 + 1)])
    result = tf.transpose(result, [2, 0, 1])  # frequency, sample, channel
    return tf.concat([tf.math.real(result), tf.math.imag(result)], axis=-1)


def frequency_weights(size: tuple) -> tf.Tensor:
    """Returns weights [H (W // 2 + 1)], float64, with ‖x‖² = Σ_ω weight(ω) ‖[Re x̂(ω), Im x̂(ω)]‖²."""
    rows, columns = size
    across = tf.range(columns // 2 + 1)
    # A frequency that is its own conjugate counts once, each other one stands for two.
    alone = tf.equal(across, 0) | tf.equal(2 * across, columns)
    weights = tf.tile(tf.where(alone, 1.0, 2.0), [rows])
    return tf.cast(weights, tf.float64) / tf.cast(rows * columns, tf.float64)


def _wrapped(x, axis: int, reach: int):
    """Returns x with `reach` more places at both ends of an axis, copied from the opposite end."""
    if not reach:
        return x
    size = x.shape[axis]
    if size is not None and size >= reach:
        index = [slice(None)] * 4

        def part(start, stop):
            index[axis] = slice(start, stop)
            return x[tuple(index)]

        return ops.concatenate([part(size - reach, None), x, part(0, reach)], axis=axis)
    count = ops.shape(x)[axis]
    places = ops.mod(ops.arange(-reach, count + reach), count)
    return ops.take(x, places, axis=axis)
