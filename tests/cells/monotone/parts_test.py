"""Tests of tfdeq.cells.monotone.parts: they agree with the cell."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeq.cells import LipschitzBounded, MonotoneConvolution, MonotoneDense

CASES = {
    "dense": (lambda: MonotoneDense(5), (3, 4), (3, 5)),
    "with a metric": (lambda: LipschitzBounded(5), (3, 4), (3, 5)),
    "convolution": (lambda: MonotoneConvolution(2), (3, 4, 5, 3), (3, 4, 5, 2)),
    "convolution, even columns": (lambda: MonotoneConvolution(2), (3, 3, 4, 3), (3, 3, 4, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_exact_parts_are_those_of_the_cell(name):
    make, input_shape, state_shape = CASES[name]
    keras.utils.set_random_seed(0)
    cell, random = make(), np.random.default_rng(0)
    x = random.normal(size=input_shape).astype("float32")
    z, v = random.normal(size=(2, *state_shape))
    injected = cell.inject(x)
    if isinstance(cell, LipschitzBounded):
        cell.logarithm.kernel.assign(random.normal(size=(1, 5)))
        injected = cell.inject(x)
    metric = cell.metric().numpy() if hasattr(cell, "metric") else 1.0
    parts = cell.exact_parts(tf.constant(x))
    image = tf.nn.relu(parts.affine(tf.constant(z)))
    np.testing.assert_allclose(image, cell(z.astype("float32"), injected), atol=1e-5)
    pushed = parts.recurrent(tf.constant(v)).numpy()
    np.testing.assert_allclose(
        metric * (parts.affine(tf.constant(z + v)) - parts.affine(tf.constant(z))),
        pushed,
        atol=1e-6,  # Λ is float32 here
    )
    # In the coordinates: lengths of v / √Λ, and vᵀΛ(I − W) v.
    weights = parts.weights[:, None, None]
    coordinates = parts.transform(tf.constant(v))
    squares = tf.reduce_sum(weights * coordinates**2, axis=(0, 2))
    expected = np.sum((v**2 / metric).reshape(3, -1), axis=1)
    np.testing.assert_allclose(squares, expected, rtol=1e-6)
    coordinates = parts.transform(tf.constant(v * metric))
    moved = tf.matmul(coordinates, parts.operator)
    form = tf.reduce_sum(weights * coordinates * moved, axis=(0, 2))
    expected = np.sum((v * (metric * v - pushed)).reshape(3, -1), axis=1)
    np.testing.assert_allclose(form, expected, rtol=1e-5)
    assert (form > 0).numpy().all()
