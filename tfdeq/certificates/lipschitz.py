"""Upper bounds of the Lipschitz constants of ordinary Keras layers."""

from collections.abc import Callable

import keras
import tensorflow as tf
from keras import layers, ops

from tfdeq.cells.monotone import circular

# Margin for float64 computations here, far above their rounding errors.
ROUNDING = 1e-9
# |φ(a) − φ(b)| <= |a − b|.
_NON_EXPANSIVE = ("linear", "relu", "tanh", "sigmoid", "softsign", "softplus", "leaky_relu", "elu")
# ‖layer(x) − layer(y)‖ <= ‖x − y‖ in inference, for all settings.
_AT_MOST_ONE = (
    layers.InputLayer,
    layers.Flatten,
    layers.Reshape,
    layers.Permute,
    layers.Identity,
    layers.Dropout,
    layers.GaussianNoise,
    layers.ZeroPadding2D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
)


def lipschitz_bound(layer: keras.layers.Layer) -> tf.Tensor:
    """Returns a float64 scalar L with ‖layer(x) − layer(y)‖₂ <= L ‖x − y‖₂ for all x and y in inference.

    Raises:
        ValueError: for a layer without a known bound.
    """
    for kind, bound in _BOUNDS.items():
        if type(layer) is kind:
            return tf.cast(bound(layer), tf.float64)
    raise ValueError(
        f"No Lipschitz constant is known of {type(layer).__name__} {layer.name!r}. Known are: "
        f"{', '.join(kind.__name__ for kind in _BOUNDS)}. Pass one of the whole model, lipschitz=."
    )


def matrix_norm(matrices: tf.Tensor) -> tf.Tensor:
    """Returns the largest ‖M‖₂ of matrices [n, rows, columns], a float64 scalar, rounded up."""
    values = tf.linalg.svd(tf.cast(matrices, tf.float64), compute_uv=False)
    return tf.reduce_max(values) * (1 + ROUNDING)


def activation_name(layer: keras.layers.Layer) -> str | None:
    """Returns the name of the layer's activation if it is one of Keras's own."""
    name = getattr(layer.activation, "__name__", None)
    # A user's function may have any name.
    known = isinstance(name, str) and hasattr(keras.activations, name)
    return name if known and layer.activation is keras.activations.get(name) else None


def _activation(layer: keras.layers.Layer) -> float:
    name = activation_name(layer)
    if name not in _NON_EXPANSIVE:
        raise ValueError(
            f"No Lipschitz constant is known of the activation {name or layer.activation!r} of "
            f"{layer.name!r}. Known are: {', '.join(_NON_EXPANSIVE)}. Pass one of the whole model, "
            "lipschitz=."
        )
    return 1.0


def _dense(layer: keras.layers.Layer) -> tf.Tensor:
    kernel = tf.cast(ops.cast(layer.kernel, layer.compute_dtype), tf.float64)
    return _activation(layer) * matrix_norm(kernel[None])


def _convolution(layer: keras.layers.Layer) -> tf.Tensor:
    """Bounds a convolution by the circular one of the zero-padded image, of which it returns a part."""
    plain = (
        layer.groups == 1
        and layer.dilation_rate == (1, 1)
        and not layer.data_format.endswith("first")
    )
    if not plain or None in layer.input.shape[1:]:
        raise ValueError(
            f"The Lipschitz constant of a convolution is known for images of a known size, channels last, "
            f"without groups and dilation; {layer.name!r} is none of these. Pass one of the whole model, "
            "lipschitz=."
        )
    kernel = tf.cast(ops.cast(layer.kernel, layer.compute_dtype), tf.float64)
    down, across = layer.kernel_size
    size = max(down, across) // 2 * 2 + 1
    # The norm does not depend on the position of the kernel's middle.
    kernel = tf.pad(kernel, [[0, size - down], [0, size - across], [0, 0], [0, 0]])
    rows, columns = layer.input.shape[1:3]
    symbol = circular.symbol(kernel, (rows + size - 1, columns + size - 1))
    return _activation(layer) * matrix_norm(symbol)


def _pooling(layer: keras.layers.Layer) -> float:
    down, across = layer.pool_size
    if tuple(layer.strides) != (down, across) or layer.padding != "valid":
        raise ValueError(
            f"The Lipschitz constant of a pooling is known for windows side by side (strides = pool_size, "
            f"padding='valid'); {layer.name!r} has strides {layer.strides} and padding {layer.padding!r}. "
            "Pass one of the whole model, lipschitz=."
        )
    average = isinstance(layer, layers.AveragePooling2D)
    return (down * across) ** -0.5 if average else 1.0


def _batch_normalization(layer: keras.layers.Layer) -> tf.Tensor:
    variance = tf.cast(ops.convert_to_tensor(layer.moving_variance), tf.float64)
    factor = tf.math.rsqrt(variance + layer.epsilon)
    if layer.scale:
        factor *= tf.cast(ops.convert_to_tensor(layer.gamma), tf.float64)
    return tf.reduce_max(tf.abs(factor)) * (1 + ROUNDING)


def _rescaling(layer: keras.layers.Layer) -> tf.Tensor:
    return tf.reduce_max(tf.abs(tf.cast(layer.scale, tf.float64)))


_BOUNDS: dict[type, Callable] = {
    **{kind: lambda layer: 1.0 for kind in _AT_MOST_ONE},
    layers.Activation: _activation,
    layers.ReLU: lambda layer: max(1.0, float(layer.negative_slope)),
    layers.Rescaling: _rescaling,
    layers.Dense: _dense,
    layers.Conv2D: _convolution,
    layers.AveragePooling2D: _pooling,
    layers.MaxPooling2D: _pooling,
    layers.BatchNormalization: _batch_normalization,
}
