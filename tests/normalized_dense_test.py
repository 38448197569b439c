"""Tests of tfdeq.cells.normalized_dense."""

import keras
import numpy as np
import pytest

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
    model.compile(keras.optimizers.SGD(0.1), "mse")
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
