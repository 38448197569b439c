"""Tests of tfdeq.cell_calls.explicit, through the layer."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import DenseCell

UNITS = 4


@pytest.mark.parametrize("training", [False, True])
def test_explicit_steps_are_the_unrolled_cell(training):
    layer = tfdeq.DEQLayer(DenseCell(UNITS, dtype="float64"), dtype="float64")
    x = tf.constant(np.random.default_rng(0).normal(size=(3, UNITS)))
    layer(x)
    with tf.GradientTape(persistent=True) as tape:
        solution = layer(x, explicit_steps=3, training=training, return_solution=True)
        z = tf.zeros_like(x)
        for _ in range(3):
            z = layer.cell(z, x)
        loss, expected = (tf.reduce_sum(value**2) for value in (solution.z, z))
    np.testing.assert_allclose(solution.z, z, rtol=1e-12)
    f_z = layer.cell(z, x).numpy()
    residual = np.linalg.norm(f_z - z, axis=-1) / np.linalg.norm(f_z, axis=-1)
    np.testing.assert_allclose(solution.residual, residual, rtol=1e-5)
    assert solution.steps.numpy().tolist() == [3, 3, 3]
    weights = [variable.value for variable in layer.trainable_variables]
    for one, other in zip(
        tape.gradient(loss, weights), tape.gradient(expected, weights), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-10)
