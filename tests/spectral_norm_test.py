"""Tests of tfdeq.spectral_norm: a bound, and nearly sharp, against numpy's singular values."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.cases import MODES, in_mode


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 64), (300, 20)])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_bound_is_above_and_near(shape, scale, mode):
    matrix = scale * np.random.default_rng(0).normal(size=shape).astype("float32")
    exact = np.linalg.norm(matrix.astype("float64"), 2)
    bound = float(in_mode(tfdeq.spectral_norm_bound, mode)(tf.constant(matrix)))
    assert exact <= bound <= exact * 1.0001 * min(shape) ** (1 / 256)


def test_all_singular_values_equal_is_the_worst_case():
    bound = float(tfdeq.spectral_norm_bound(3.0 * tf.eye(256)))
    np.testing.assert_allclose(bound, 3.0 * 256 ** (1 / 256), rtol=1e-4)


def test_zero_matrix_and_half_precision():
    assert 0.0 <= float(tfdeq.spectral_norm_bound(tf.zeros([4, 3]))) < 1e-6
    assert tfdeq.spectral_norm_bound(tf.eye(4, dtype=tf.bfloat16)).dtype == tf.float32


def test_gradient_is_that_of_the_largest_singular_value():
    matrix = tf.constant(np.diag([3.0, 1.0, 0.5]))
    with tf.GradientTape() as tape:
        tape.watch(matrix)
        bound = tfdeq.spectral_norm_bound(matrix)
    np.testing.assert_allclose(tape.gradient(bound, matrix), np.diag([1.0, 0, 0]), atol=1e-4)


def test_only_matrices():
    with pytest.raises(ValueError, match=r"takes a matrix; received shape \(2, 3, 4\)"):
        tfdeq.spectral_norm_bound(tf.zeros([2, 3, 4]))


def test_constraint_holds_while_a_layer_trains():
    """A target that wants large weights; the bound is met after every update."""
    layer = keras.layers.Dense(4, use_bias=False, kernel_constraint=tfdeq.SpectralNorm(0.7))
    model = keras.Sequential([keras.Input([4]), layer])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    norms = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: norms.append(np.linalg.norm(layer.kernel.numpy(), 2))
    )
    model.fit(x, 5 * x, epochs=3, verbose=0, callbacks=[callback])
    assert max(norms) <= 0.7
    assert norms[-1] > 0.65


def test_constraint_leaves_small_weights_and_takes_kernels_of_convolutions():
    constraint = tfdeq.SpectralNorm(1.0)
    small = tf.constant([[0.5, 0.0], [0.0, 0.1]])
    np.testing.assert_array_equal(constraint(small), small)
    kernel = constraint(tf.random.stateless_normal([3, 3, 4, 5], [0, 1]))
    assert np.linalg.norm(tf.reshape(kernel, [-1, 5]), 2) <= 1.0
    again = keras.constraints.deserialize(keras.constraints.serialize(constraint))
    assert again.bound == 1.0
    with pytest.raises(ValueError, match="bound must be a finite number greater than 0"):
        tfdeq.SpectralNorm(0.0)
