"""Tests of tfdeq.cells.monotone.parts: that they are the cell."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeq.cells import MonotoneConvolution, MonotoneDense

CASES = {
    "dense": (lambda: MonotoneDense(5), (3, 4), (3, 5)),
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
    parts = cell.exact_parts(tf.constant(x))
    image = tf.nn.relu(parts.affine(tf.constant(z)))
    np.testing.assert_allclose(image, cell(z.astype("float32"), injected), atol=1e-5)
    np.testing.assert_allclose(
        parts.affine(tf.constant(z + v)) - parts.affine(tf.constant(z)),
        parts.recurrent(tf.constant(v)),
        atol=1e-12,
    )
    # In the coordinates: lengths, and vᵀ(I − W) v.
    coordinates = parts.transform(tf.constant(v))
    weights = parts.weights[:, None, None]
    squares = tf.reduce_sum(weights * coordinates**2, axis=(0, 2))
    np.testing.assert_allclose(squares, np.sum(v.reshape(3, -1) ** 2, axis=1))
    form = tf.reduce_sum(
        weights * coordinates * tf.matmul(coordinates, parts.operator), axis=(0, 2)
    )
    moved = v - parts.recurrent(tf.constant(v)).numpy()
    expected = np.sum((v * moved).reshape(3, -1), axis=1)
    np.testing.assert_allclose(form, expected)
