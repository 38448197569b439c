"""RecallConvolution: what a place sees, compared with a Keras convolution."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tfdeq.cells import RecallConvolution


def _floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _convolved(x, kernel):
    """Computes a dense layer over a place and its neighbours by Keras's zero-padded convolution."""
    rank, width = x.ndim - 2, x.shape[-1]
    parts = np.split(kernel, len(kernel) // width)
    whole = np.zeros([3] * rank + list(parts[0].shape), "float32")
    places = [(1,) * rank]
    for axis in range(rank):
        for by in (0, 2):
            places.append(tuple(by if axis == other else 1 for other in range(rank)))
    for place, part in zip(places, parts, strict=True):
        whole[place] = part
    return keras.ops.conv(x, whole, padding="same")


@pytest.mark.parametrize("shape", [(2, 7, 4), (2, 5, 6, 4)])
def test_one_application(shape):
    """The formula in the docstring, by Keras's convolution."""
    z, x = _floats(*shape), _floats(*shape, seed=1)
    cell = RecallConvolution(4, rank=len(shape) - 2)
    result = cell(z, cell.inject(x))
    normed = z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-5)
    hidden = _convolved(normed, cell.recurrent.kernel.numpy()) + cell.injection.bias
    hidden += _convolved(x, cell.injection.kernel.numpy())
    expected = x + tf.matmul(keras.ops.gelu(hidden, approximate=True), cell.contract.kernel)
    np.testing.assert_allclose(result, expected, atol=2e-6)  # float32 sums of up to 20 terms


def test_a_change_travels_one_place_an_application():
    cell = RecallConvolution(4, rank=1)
    x = _floats(1, 20, 4)
    other = x.copy()
    other[0, 10] += 1.0
    for steps in (1, 3):
        layer = tfdeq.DEQLayer(cell, explicit_steps=steps)
        changed = np.abs(layer(x) - layer(other)).max(axis=(0, 2)) > 0
        assert np.flatnonzero(changed).tolist() == list(range(10 - steps, 11 + steps))


def test_other_sizes_than_it_was_built_for():
    layer = tfdeq.DEQLayer(RecallConvolution(4), solver="fixed_point_iteration")
    assert layer(_floats(2, 3, 3, 4)).shape == (2, 3, 3, 4)
    assert layer(_floats(2, 5, 4, 4)).shape == (2, 5, 4, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width must be"),
        ({"width": 4, "rank": 3}, "rank must be 1 or 2; received 3"),
        ({"width": 4, "recurrent_scale": -1.0}, "recurrent_scale must be >= 0; received -1.0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        RecallConvolution(**settings)


def test_an_input_of_another_rank():
    with pytest.raises(ValueError, match=r"rank 2 takes \[batch, rows, columns, 4\].*\(2, 5, 4\)"):
        RecallConvolution(4).inject(_floats(2, 5, 4))
