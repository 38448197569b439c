"""Tests of tfdeq.certificates.lipschitz: bounds compared with the layers as matrices."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfdeq.certificates.lipschitz import lipschitz_bound, matrix_norm

IMAGE = (4, 5, 2)
# The layer, the shape of its input, and the largest ratio of the bound to the exact constant.
LINEAR = {
    "dense": (lambda: layers.Dense(3), (4,), 1.0),
    "dense of places": (lambda: layers.Dense(3), (5, 4), 1.0),
    "flatten": (layers.Flatten, IMAGE, 1.0),
    "rescaling": (lambda: layers.Rescaling(-3.0, offset=1.0), (4,), 1.0),
    "convolution, same": (lambda: layers.Conv2D(3, 3, padding="same"), IMAGE, 1.3),
    "convolution, valid": (lambda: layers.Conv2D(3, 3), IMAGE, 1.6),
    "convolution, strides": (lambda: layers.Conv2D(3, 3, strides=2, padding="same"), IMAGE, 2.5),
    "convolution, even and oblong": (lambda: layers.Conv2D(3, (2, 4), padding="same"), IMAGE, 1.5),
    "average pooling": (lambda: layers.AveragePooling2D(2), IMAGE, 1.0),
    "batch normalization": (layers.BatchNormalization, IMAGE, 1.0),
}


def _matrix(layer, shape):
    """Returns the layer's linear part, from its outputs for unit vectors."""
    size = int(np.prod(shape))
    zero = np.asarray(layer(np.zeros((1, *shape), "float32")))
    units = np.eye(size, dtype="float32").reshape(size, *shape)
    return (np.asarray(layer(units)) - zero).reshape(size, -1).astype("float64")


def _made(make, shape):
    keras.utils.set_random_seed(0)
    layer = make()
    keras.Sequential([keras.Input(shape), layer])
    if isinstance(layer, layers.BatchNormalization):
        layer.moving_variance.assign([0.3, 2.0])
        layer.gamma.assign([0.5, -3.0])
    return layer


@pytest.mark.parametrize("name", LINEAR)
def test_of_linear_layers(name):
    make, shape, excess = LINEAR[name]
    layer = _made(make, shape)
    exact = np.linalg.norm(_matrix(layer, shape), 2)
    bound = float(lipschitz_bound(layer))
    # The matrix is made in float32.
    assert exact * (1 - 1e-5) <= bound <= exact * excess * (1 + 1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.Dense(3, "tanh"),
        lambda: layers.Activation("relu"),
        lambda: layers.ReLU(negative_slope=2.0),
        lambda: layers.MaxPooling2D(2),
        layers.GlobalMaxPooling2D,
        layers.GlobalAveragePooling2D,
    ],
)
def test_of_other_layers(make):
    layer = _made(make, IMAGE)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 500, *IMAGE)).astype("float32")
    moved = np.linalg.norm(np.reshape(layer(x) - layer(y), (500, -1)), axis=1)
    moved /= np.linalg.norm(np.reshape(x - y, (500, -1)), axis=1)
    assert moved.max() <= float(lipschitz_bound(layer))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Conv2D(2, 3, groups=2), "groups and dilation"),
        (lambda: layers.AveragePooling2D(2, strides=1), "windows side by side"),
        (lambda: layers.Dense(2, "gelu"), "activation 'gelu'"),
        (lambda: layers.UnitNormalization(), "known of UnitNormalization"),
    ],
)
def test_where_none_is_known(make, message):
    with pytest.raises(ValueError, match=message):
        lipschitz_bound(_made(make, IMAGE))


def test_matrix_norm_is_the_largest_and_rounded_up():
    matrices = np.random.default_rng(0).normal(size=(3, 4, 5))
    exact = np.linalg.norm(matrices, 2, axis=(1, 2)).max()
    assert exact <= matrix_norm(tf.constant(matrices)) <= exact * (1 + 1e-8)
