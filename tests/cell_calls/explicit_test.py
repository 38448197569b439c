"""Tests of tfdeq.cell_calls.explicit, through the layer."""

import keras
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


def test_a_layer_or_a_scope_may_say_how_often():
    """The call overrides the scope, and the scope the layer; 0 in a scope means a solve."""
    keras.utils.set_random_seed(0)
    applied = tfdeq.DEQLayer(DenseCell(UNITS), explicit_steps=2)
    x = tf.constant(np.random.default_rng(0).normal(size=(3, UNITS)), tf.float32)

    def steps(**call):
        return applied(x, return_solution=True, **call).steps.numpy().tolist()

    assert steps() == [2, 2, 2]
    with tfdeq.SolveScope(explicit_steps=3):
        assert steps() == [3, 3, 3]
        assert steps(explicit_steps=4) == [4, 4, 4]
    with tfdeq.SolveScope(explicit_steps=0, max_steps=7, tolerance=1e-30):
        assert steps() == [7, 7, 7]
    again = tfdeq.DEQLayer.from_config(applied.get_config())
    assert again.explicit_steps == 2
    with pytest.raises(ValueError, match="explicit_steps must be"):
        tfdeq.DEQLayer(DenseCell(UNITS), explicit_steps=-1)


@pytest.mark.slow
def test_a_compiled_function_takes_them_from_a_scope_inside():
    layer = tfdeq.DEQLayer(DenseCell(UNITS))
    x = tf.ones([2, UNITS])

    @tf.function
    def inside(x):
        with tfdeq.SolveScope(explicit_steps=3):
            return layer(x, return_solution=True).steps

    assert inside(x).numpy().tolist() == [3, 3]
    outside = tf.function(lambda x: layer(x, return_solution=True).steps)
    outside(x)
    with tfdeq.SolveScope(explicit_steps=3), pytest.raises(Exception, match="inside the function"):
        outside(x)
