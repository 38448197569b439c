"""Tests of tfdeq.baselines.temporal_convolution."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeq.baselines import TemporalConvolution

FEATURES, WIDTH = 5, 6


def _inputs(length=9, features=FEATURES, dtype="float64"):
    return np.random.default_rng(0).normal(size=(2, length, features)).astype(dtype)


def _kernel(convolution, taps):
    """Returns a convolution's weights in Keras's form: lengths times directions."""
    direction = convolution.direction.numpy()
    unit = direction / np.linalg.norm(direction, axis=0)
    return (unit * convolution.gain.numpy()).reshape(taps, -1, WIDTH)


@pytest.mark.parametrize("kernel_size", [1, 2, 3])
def test_blocks_are_made_of_causal_convolutions(kernel_size):
    layer = TemporalConvolution(WIDTH, 3, kernel_size, dtype="float64")
    layer.build((None, None, FEATURES))
    for variable in layer.trainable_variables:  # lengths that differ from those of the directions
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.2, dtype="float64"))
    x = h = tf.constant(_inputs())
    for block in range(3):
        skip = h if block else layer.skip(h)
        for convolution in (layer.first[block], layer.second[block]):
            same = keras.layers.Conv1D(
                WIDTH, kernel_size, padding="causal", dilation_rate=2**block, dtype="float64"
            )
            same.build(h.shape)
            same.set_weights([_kernel(convolution, kernel_size), convolution.bias.numpy()])
            h = tf.nn.relu(same(h))
        h = tf.nn.relu(h + skip)
    np.testing.assert_allclose(layer(x), h, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("layers", "kernel_size"), [(1, 1), (1, 2), (2, 3), (3, 2), (4, 3)])
def test_receptive_field_is_exact(layers, kernel_size):
    layer = TemporalConvolution(WIDTH, layers, kernel_size, dtype="float64")
    field = 1 + 2 * (kernel_size - 1) * (2**layers - 1)
    layer.build((None, None, FEATURES))
    for variable in layer.trainable_variables:  # no ReLU hides a path
        variable.assign(tf.abs(variable) + 0.1)
    x = tf.abs(tf.constant(_inputs(field + 3)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        last = tf.reduce_sum(layer(x)[:, -1])
    reached = np.abs(tape.gradient(last, x)).sum(axis=(0, 2)) > 0
    np.testing.assert_array_equal(reached, np.arange(field + 3) >= 3)


@pytest.mark.parametrize("features", [FEATURES, WIDTH])
def test_parameters(features):
    layer = TemporalConvolution(WIDTH, 3, 2)
    layer(_inputs(features=features, dtype="float32"))
    gains_and_biases = 2 * WIDTH
    convolutions = [features, WIDTH, WIDTH, WIDTH, WIDTH, WIDTH]
    expected = sum(2 * n * WIDTH + gains_and_biases for n in convolutions)
    skip = 0 if features == WIDTH else features * WIDTH + WIDTH
    assert layer.count_params() == expected + skip
    assert (layer.skip is None) == (features == WIDTH)


def test_memory_is_what_the_convolutions_see():
    layer = TemporalConvolution(WIDTH, 3, 3)
    with pytest.raises(ValueError, match="Build the layer first, by a call or by build"):
        layer.initial_memory(2)
    layer.build((None, None, FEATURES))
    shapes = [
        {name: tuple(w.shape) for name, w in block.items()} for block in layer.initial_memory(2)
    ]
    assert shapes[0] == {"first": (2, 2, FEATURES), "second": (2, 2, WIDTH)}
    assert shapes[2] == {"first": (2, 8, WIDTH), "second": (2, 8, WIDTH)}


@pytest.mark.parametrize("place", ["first", "second"])
def test_dropout_follows_each_convolution(place):
    layer = TemporalConvolution(WIDTH, 1, dropout=0.5)
    x = _inputs(dtype="float32")
    layer(x)
    layer.skip.kernel.assign(tf.zeros_like(layer.skip.kernel))
    getattr(layer, place)[0].bias.assign(tf.fill([WIDTH], 10.0))  # every ReLU is open
    if place == "first":  # the second convolution passes it on, without dropout
        taps = np.zeros([3, WIDTH, WIDTH])
        taps[-1] = np.eye(WIDTH)
        layer.second[0].direction.assign(taps.reshape(-1, WIDTH))
        layer.second[0].gain.assign(tf.ones([WIDTH]))
        layer.second_dropout[0].rate = 0.0
    output = layer(x, training=True).numpy()
    dropped = output == 0
    assert (dropped.all(axis=1) | ~dropped.any(axis=1)).all()
    assert dropped.any()
    assert not dropped.all()
