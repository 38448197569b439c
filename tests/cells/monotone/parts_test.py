"""Tests of tfdeq.cells.monotone.parts: they agree with the cell."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeq.cells import (
    LipschitzBounded,
    MonotoneConvolution,
    MonotoneDense,
    MonotoneMultiscaleConvolution,
)

CASES = {
    "dense": (lambda: MonotoneDense(5), (3, 4), (3, 5)),
    "with a metric": (lambda: LipschitzBounded(5), (3, 4), (3, 5)),
    "convolution": (lambda: MonotoneConvolution(2), (3, 4, 5, 3), (3, 4, 5, 2)),
    "convolution, even columns": (lambda: MonotoneConvolution(2), (3, 3, 4, 3), (3, 3, 4, 2)),
    "branches": (
        lambda: MonotoneMultiscaleConvolution((2, 1)),
        (3, 4, 6, 3),
        [(3, 4, 6, 2), (3, 2, 3, 1)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_exact_parts_are_those_of_the_cell(name):
    make, input_shape, state_shape = CASES[name]
    keras.utils.set_random_seed(0)
    cell, random = make(), np.random.default_rng(0)
    x = random.normal(size=input_shape).astype("float32")
    z, v = (_each(lambda shape: tf.constant(random.normal(size=shape)), state_shape) for _ in "zv")
    injected = cell.inject(x)
    if isinstance(cell, LipschitzBounded):
        cell.logarithm.kernel.assign(random.normal(size=(1, 5)))
        injected = cell.inject(x)
    metric = cell.metric().numpy() if hasattr(cell, "metric") else 1.0
    parts = cell.exact_parts(tf.constant(x))
    image = _each(tf.nn.relu, parts.affine(z))
    rounded = _each(lambda leaf: tf.cast(leaf, tf.float32), z)
    for one, other in zip(*map(tf.nest.flatten, (image, cell(rounded, injected))), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    pushed = parts.recurrent(v)
    moved = _each(tf.subtract, parts.affine(_each(tf.add, z, v)), parts.affine(z))
    for one, other in zip(*map(tf.nest.flatten, (moved, pushed)), strict=True):
        np.testing.assert_allclose(metric * one, other, atol=1e-6)  # Λ is float32 here
    # In the coordinates: lengths of v / √Λ, and vᵀΛ(I − W) v.
    weights = parts.weights[:, None, None]
    coordinates = parts.transform(v)
    squares = tf.reduce_sum(weights * coordinates**2, axis=(0, 2))
    np.testing.assert_allclose(squares, np.sum(_flat(v) ** 2 / metric, axis=1), rtol=1e-6)
    coordinates = parts.transform(_each(lambda leaf: leaf * metric, v))
    moved = tf.matmul(coordinates, parts.operator)
    form = tf.reduce_sum(weights * coordinates * moved, axis=(0, 2))
    expected = np.sum(_flat(v) * (metric * _flat(v) - _flat(pushed)), axis=1)
    np.testing.assert_allclose(form, expected, rtol=1e-5)
    assert (form > 0).numpy().all()


def _each(function, *nests):
    """Applies a function to the tensors, or shapes, of one list or of what is not in a list."""
    if isinstance(nests[0], list):
        return [function(*leaves) for leaves in zip(*nests, strict=True)]
    return function(*nests)


def _flat(z):
    """Returns [B, D]."""
    return np.concatenate([np.reshape(leaf, (3, -1)) for leaf in tf.nest.flatten(z)], axis=1)
