"""NormalizedConvolution: lengths and directions of filters."""

import keras
import numpy as np

from tfdeq.cells.multiscale.normalized_convolution import NormalizedConvolution


def test_it_starts_as_an_ordinary_convolution_and_lengths_scale_its_channels():
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype("float32")
    layer = NormalizedConvolution(4, 3)
    before = np.asarray(layer(x))
    kernel = np.asarray(layer.columns.direction).reshape(3, 3, 3, 4)
    np.testing.assert_allclose(before, keras.ops.conv(x, kernel, padding="same"), atol=1e-5)
    gain = np.asarray(layer.columns.gain)
    np.testing.assert_allclose(gain, np.sqrt((kernel**2).sum(axis=(0, 1, 2))), rtol=1e-5)
    layer.columns.gain.assign(gain * [1.0, 2.0, 0.0, -1.0])
    layer.columns.direction.assign(5 * layer.columns.direction)  # no matter how long
    # float32 sums of 27 products
    np.testing.assert_allclose(layer(x), before * [1.0, 2.0, 0.0, -1.0], atol=2e-5)


def test_it_survives_its_config():
    layer = NormalizedConvolution(4, 1, name="mine")
    again = NormalizedConvolution.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.compute_output_shape((2, 5, 5, 3)) == (2, 5, 5, 4)
