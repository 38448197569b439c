"""The cosine of the training gradient and an accurate one, computed by hand; the layer does not change."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tfdeq import FixedPointIteration, Implicit
from tfdeq.adjoints import JacobianFree, Unrolled
from tfdeq.training.gradient_cosine import gradient_cosine

A = np.array([[0.6, 0.3], [-0.2, 0.5]], "float32")
C = np.array([1.0, -2.0], "float32")
X = np.array([[1.0, 0.0], [0.5, 2.0]], "float32")


class Linear(keras.layers.Layer):
    """f(z, x) = A z + b + x."""

    def build(self, shape):
        self.b = self.add_weight(shape=(2,), initializer="zeros")

    def call(self, z, x):
        return z @ A.T + self.b + x


def _layer(adjoint):
    layer = tfdeq.DEQLayer(Linear(), FixedPointIteration(max_steps=40, tolerance=1e-9), adjoint)
    layer(X)
    return layer


def _found(layer, max_steps=20):
    def loss(batch, steps):
        return tf.reduce_mean(tf.linalg.matvec(layer(batch, max_steps=steps), C))

    function = tf.function(
        lambda: gradient_cosine(
            loss, [layer], layer.trainable_variables, tf.constant(X), tf.constant(max_steps)
        )
    )
    return {name: float(value) for name, value in function().items()}


@pytest.mark.parametrize(
    ("adjoint", "matrix"),
    [
        pytest.param(JacobianFree(), np.eye(2), marks=pytest.mark.slow),
        (Unrolled(2), np.eye(2) + A.T),
        pytest.param(
            Implicit(FixedPointIteration(max_steps=200, tolerance=1e-7)),
            np.linalg.inv(np.eye(2) - A.T),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_by_hand(adjoint, matrix):
    """∂(cᵀz*)/∂b is (I − Aᵀ)⁻¹ c; an adjoint has its own matrix in place of the inverse."""
    layer = _layer(adjoint)
    found = _found(layer)
    one, other = matrix @ C, np.linalg.solve(np.eye(2) - A.T, C)
    expected = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert found["gradient_cosine"] == pytest.approx(expected, abs=1e-5)
    assert found["reference_residual"] < 2e-6
    assert layer.adjoint is adjoint


def test_a_reference_that_has_not_settled_says_so():
    assert _found(_layer(JacobianFree()), max_steps=1)["reference_residual"] > 1e-5


def test_layers_are_as_before_also_after_an_error():
    layer = _layer("jacobian_free")
    before = layer.adjoint

    def loss(batch, steps):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        gradient_cosine(loss, [layer], layer.trainable_variables, tf.constant(X), tf.constant(1))
    assert layer.adjoint is before
