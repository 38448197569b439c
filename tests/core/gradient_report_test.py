"""Tests of tfdeq.gradient_report: figures compared with gradients computed by hand; no side effects."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import DenseCell, NoisyCell, PairCell, fast
from tfdeq import adjoints


def _built(cell=None, **settings):
    layer = tfdeq.DEQLayer(cell or DenseCell(4), **settings)
    x = tf.constant(np.random.default_rng(0).normal(size=[3, 4]), tf.float32)
    layer(x, explicit_steps=1)  # builds it
    return layer, x


def test_a_row_for_every_rule_and_the_layers_own():
    layer, x = _built(adjoint=tfdeq.PhantomGradient(2))
    report = tfdeq.gradient_report(layer, x)
    assert set(report) == {"layer", *adjoints.REGISTRY}
    for name, row in report.items():
        assert 0.8 < row.weights_cosine < 1 + 1e-6, name
        assert 0.8 < row.x_cosine < 1 + 1e-6, name
        assert row.steps >= 1
    assert report["implicit"].weights_cosine > 0.9999
    assert report["jacobian_free"].x_cosine < report["layer"].x_cosine < 0.9999
    assert report.residual <= 1e-6
    assert report.backward_residual <= 1e-6


def test_figures_in_closed_form():
    """f(z) = 0.5 z + 1 x: JacobianFree's gradients of weights and x are half the exact ones."""

    class Cell(keras.layers.Layer):
        def build(self, _):
            self.slope = self.add_weight(initializer=keras.initializers.Constant(0.5))

        def call(self, z, x):
            return self.slope * z + x

    layer, x = _built(Cell())
    report = tfdeq.gradient_report(layer, x, {"free": "jacobian_free"})
    # The layer's forward solve has a tolerance of 1e-3, but a linear cell with one slope is solved
    # exactly.
    np.testing.assert_allclose(report["free"][:4], [1.0, 0.5, 1.0, 0.5], rtol=1e-5)


def test_as_text_it_is_a_table():
    layer, x = _built()
    lines = str(tfdeq.gradient_report(layer, x, {"phantom": tfdeq.PhantomGradient()})).splitlines()
    assert lines[0].split() == [
        "adjoint",
        "weights:",
        "cosine",
        "norm",
        "x:",
        "cosine",
        "norm",
        "steps",
    ]
    assert lines[1].startswith("phantom  ")
    assert lines[2].startswith("reference: implicit, residual ")


@pytest.mark.parametrize("training", fast([False], [True, False]))
@pytest.mark.slow
def test_the_layer_is_left_as_it_was(training):
    layer, x = _built(NoisyCell(4))
    before = [np.copy(variable.numpy()) for variable in layer.variables]
    first = tfdeq.gradient_report(layer, x, training=training)
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, variable.path)
    assert tfdeq.gradient_report(layer, x, training=training) == first
    assert tfdeq.gradient_report(layer, x, training=training, seed=1) != first


def test_nests_and_integers():
    layer = tfdeq.DEQLayer(PairCell(4))
    x = {"value": tf.ones([3, 4]), "token": tf.constant([0, 4, 2])}
    layer(x, explicit_steps=1)  # builds it
    report = tfdeq.gradient_report(layer, x, {"implicit": "implicit"})
    assert report["implicit"].weights_cosine > 0.9999
    assert report["implicit"].x_cosine > 0.9999


def test_an_input_of_integers_alone_has_no_gradient():
    class Cell(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.embedding = keras.layers.Embedding(5, 4)

        def initial_state(self, x):
            return tf.zeros([tf.shape(x)[0], 4])

        def call(self, z, x):
            return 0.5 * z + self.embedding(x)

    layer = tfdeq.DEQLayer(Cell())
    x = tf.constant([0, 4, 2])
    layer(x, explicit_steps=1)  # builds it
    row = tfdeq.gradient_report(layer, x, {"implicit": "implicit"})["implicit"]
    assert row.weights_cosine > 0.9999
    assert math.isnan(row.x_cosine)


def test_float64_is_compared_tightly():
    keras.config.set_dtype_policy("float64")
    layer, x = _built(solver=tfdeq.Broyden(100, 1e-12))
    report = tfdeq.gradient_report(layer, x, {"implicit": "implicit", "shine": tfdeq.Shine(60)})
    for row in report.values():
        np.testing.assert_allclose(row[:4], 1.0, rtol=1e-9)


@pytest.mark.parametrize("layer", [DenseCell(4), tfdeq.DEQLayer(DenseCell(4))])
def test_what_is_no_built_layer_is_refused(layer):
    with pytest.raises(ValueError, match="layer must be a DEQLayer that is built; received"):
        tfdeq.gradient_report(layer, tf.zeros([2, 4]))
