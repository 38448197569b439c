"""Tests of tfdeq.cells.normalized_dense."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeq.cells import WeightNormalizedDense, normalized_dense
from tfdeq.spectral_norm import SpectralNorm


def test_starts_as_the_dense_layer_with_the_same_initializer():
    initializer = keras.initializers.RandomNormal(seed=3)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    plain = keras.layers.Dense(4, kernel_initializer=initializer)
    normalised = WeightNormalizedDense(4, kernel_initializer=initializer)
    np.testing.assert_allclose(normalised(x), plain(x), rtol=1e-5)


def test_a_zero_matrix_can_be_learned_from():
    layer = WeightNormalizedDense(4, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input([3]), layer])
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    np.testing.assert_array_equal(layer(x), np.zeros([32, 4]))
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    losses = model.fit(x, x @ np.ones([3, 4]), epochs=60, verbose=0).history["loss"]
    assert losses[-1] < 0.3 * losses[0]


def test_direction_has_no_say_in_the_length():
    layer = WeightNormalizedDense(4, use_bias=False)
    layer.build((None, 3))
    before = np.array(layer.kernel)
    layer.direction.assign(7.0 * layer.direction)
    np.testing.assert_allclose(layer.kernel, before, rtol=1e-5)
    layer.gain.assign([1.0, 2.0, 3.0, 0.0])
    np.testing.assert_allclose(
        np.linalg.norm(layer.kernel, axis=0), [1, 2, 3, 0], rtol=1e-5, atol=1e-7
    )


@pytest.mark.slow
def test_learns_and_survives_saving(tmp_path):
    model = keras.Sequential([keras.Input([3]), WeightNormalizedDense(2)])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    losses = model.fit(x, x[:, :2] + 1.0, epochs=60, verbose=0).history["loss"]
    assert losses[-1] < 0.3 * losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-6)


def test_names():
    assert type(normalized_dense(3, None)) is keras.layers.Dense
    assert type(normalized_dense(3, "weight")) is WeightNormalizedDense
    assert isinstance(normalized_dense(3, "spectral").kernel_constraint, SpectralNorm)
    with pytest.raises(ValueError, match="None, 'weight' or 'spectral'; received 'batch'"):
        normalized_dense(3, "batch")


@pytest.mark.parametrize(("inputs", "units"), [(3, 5), (5, 3)])
def test_columns_of_zeros_can_be_learned_from(inputs, units):
    """A rectangular identity matrix has such columns."""
    layer = WeightNormalizedDense(units, use_bias=False, kernel_initializer="identity")
    layer.build((None, inputs))
    np.testing.assert_allclose(layer.kernel, np.eye(inputs, units), atol=1e-7)
    assert (np.abs(layer.direction).max(axis=0) > 0).all()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.random.stateless_normal([inputs, units], [1, 2]) * layer.kernel)
    gradient = tape.gradient(loss, layer.gain.value).numpy()
    assert (np.abs(gradient) > 0).all()


def test_directions_of_zero_length_have_finite_kernels_and_gradients():
    layer = WeightNormalizedDense(4, use_bias=False)
    layer.build((None, 3))
    layer.direction.assign(tf.zeros([3, 4]))
    with tf.GradientTape() as tape:
        kernel = layer.kernel
        loss = tf.reduce_sum(kernel)
    np.testing.assert_array_equal(kernel, np.zeros([3, 4]))
    gradients = tape.gradient(loss, [layer.direction.value, layer.gain.value])
    np.testing.assert_allclose(gradients[0], np.tile(layer.gain, [3, 1]), rtol=1e-6)
    np.testing.assert_array_equal(gradients[1], np.zeros(4))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e30])
def test_lengths_of_tiny_and_huge_directions(scale):
    layer = WeightNormalizedDense(4, use_bias=False)
    layer.build((None, 3))
    before, direction = np.array(layer.kernel), np.array(layer.direction)
    layer.direction.assign(scale * direction)
    np.testing.assert_allclose(layer.kernel, before, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_lengths(dtype):
    """Columns whose squares float16 cannot represent, and whose sums are inaccurate in bfloat16."""
    policy = keras.DTypePolicy(f"mixed_{dtype}")
    initializer = keras.initializers.RandomNormal(stddev=1e-5, seed=1)
    layer = WeightNormalizedDense(4, use_bias=False, kernel_initializer=initializer, dtype=policy)
    x = np.eye(2000, dtype="float32")
    kernel = tf.cast(layer(x), tf.float64).numpy()
    expected = np.array(layer.direction, "float64")
    np.testing.assert_allclose(
        np.linalg.norm(kernel, axis=0), np.linalg.norm(expected, axis=0), rtol=5e-3
    )


def test_gradient_against_finite_differences():
    layer = WeightNormalizedDense(4, use_bias=False, dtype="float64")
    layer.build((None, 3))
    random = np.random.default_rng(0)
    weight, direction = random.normal(size=(2, 3, 4))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(weight * layer.kernel)
    gradient = tape.gradient(loss, layer.direction.value).numpy()
    base, h = layer.direction.numpy(), 1e-6
    values = []
    for sign in (1, -1):
        layer.direction.assign(base + sign * h * direction)
        values.append(float(tf.reduce_sum(weight * layer.kernel)))
    difference = (values[0] - values[1]) / (2 * h)
    np.testing.assert_allclose(np.sum(gradient * direction), difference, rtol=1e-7)
