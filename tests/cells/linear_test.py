"""The cells' linear maps and norm."""

import keras
import numpy as np
import pytest

from tfdeq.cells.linear import checked_scale, linear, norm


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_weights_start_at_the_scale(scale):
    keras.utils.set_random_seed(0)
    layer = linear(300, scale, name="map")
    layer.build((None, 400))
    # The mean square of 120,000 normal values is within 2 % of the variance, five standard errors.
    np.testing.assert_allclose(np.mean(layer.kernel.numpy() ** 2), scale**2 / 400, rtol=0.02)
    assert layer.bias is None


def test_norm():
    x = np.array([[3.0, 4.0], [0.0, 0.0]], "float32")
    # The mean square of the first row is 12.5; epsilon changes the result by a relative 4e-7.
    np.testing.assert_allclose(norm(x), [[3 / 12.5**0.5, 4 / 12.5**0.5], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_scale_below_zero(value):
    with pytest.raises(ValueError, match="recurrent_scale must be >= 0; received"):
        checked_scale("recurrent_scale", value)
