"""Every class in keras.layers works in a cell as in plain Keras calls."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfdeq
from tests.support.keras_layer_cases import (
    CASES,
    EXCLUDED,
    NOT_LOADED,
    QUICK,
    STYLES,
    layer_classes,
)

SOLVER = tfdeq.Anderson(max_steps=80, tolerance=3e-7)
BATCH = 3


@keras.saving.register_keras_serializable(package="tfdeq_tests")
class LayerCell(keras.layers.Layer):
    """x + gain · tanh(a layer of z or x, brought back to z's shape)."""

    def __init__(self, layer, style, gain=0.1, **kwargs):
        super().__init__(**kwargs)
        self.layer, self.style, self.gain = layer, style, gain

    def build(self, z_shape, x_shape):
        # As Keras requires for a layer whose parts create tensors when they are built
        # (Normalization).
        if self.style == "on_z":
            self.layer.build(z_shape)

    def call(self, z, x):
        y = STYLES[self.style](self.layer, ops.tanh(z), x)
        y = ops.cast(y, z.dtype)
        if tuple(y.shape[1:]) != tuple(z.shape[1:]):
            y = ops.mean(y, axis=tuple(range(1, len(y.shape))))
            y = ops.reshape(y, (-1, *[1] * (len(z.shape) - 1)))
        return x + self.gain * (ops.tanh(y) + 0.5 * ops.tanh(z))

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        layer.pop("build_config", None)
        return {**super().get_config(), "layer": layer, "style": self.style, "gain": self.gain}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


def _state(layer):
    return [variable.numpy() for variable in layer.variables]


def _restore(layer, values):
    for variable, value in zip(layer.variables, values, strict=True):
        variable.assign(value)


def _by_hand(cell, x, training, applications=40):
    """Makes plain Keras calls, all with the initial weights, seeds and statistics."""
    start, z = _state(cell), tf.zeros_like(x)
    for _ in range(applications):
        _restore(cell, start)
        z = cell(z, x, training=training)
    after = _state(cell)
    losses = [float(loss) for loss in cell.losses]
    _restore(cell, start)
    return z, after, losses


def test_the_table_has_every_layer():
    classes = layer_classes()
    unknown = sorted(set(classes) - set(CASES) - set(EXCLUDED))
    assert not unknown, (
        f"keras.layers has {unknown}, of which tests/support/keras_layer_cases.py knows nothing: say in "
        "CASES how it is made inside a cell, or in EXCLUDED why it cannot stand in one."
    )
    gone = sorted((set(CASES) | set(EXCLUDED)) - set(classes))
    assert not gone, f"keras.layers has no {gone} any more: take them out of the table."


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_a_layer_in_a_cell_does_what_keras_does(name, tmp_path):
    shape, style, make = CASES[name]
    x = tf.constant(np.random.default_rng(0).normal(size=(BATCH, *shape)).astype("float32"))
    layer = tfdeq.DEQLayer(LayerCell(make(), style), SOLVER, convergence_metrics=False)
    inputs = keras.Input(shape, batch_size=BATCH)
    model = keras.Model(inputs, layer(inputs))

    for training in (False, True):
        start = _state(layer.cell)
        expected, after, losses = _by_hand(layer.cell, x, training)
        _restore(layer.cell, start)
        with tf.GradientTape() as tape:
            z = model(x, training=training)
            loss = tf.reduce_sum(z**2)
        np.testing.assert_allclose(z, expected, atol=2e-5, err_msg=f"training={training}")
        # Weights, seeds and statistics have advanced as by one call at the equilibrium.
        for variable, received, kept in zip(
            layer.cell.variables, _state(layer), after, strict=True
        ):
            np.testing.assert_allclose(received, kept, atol=2e-5, err_msg=variable.path)
        # The regulariser's values are float32, of order 1e-2.
        np.testing.assert_allclose(np.sort(layer.losses), np.sort(losses), rtol=1e-4)
        weights = [variable.value for variable in layer.trainable_variables]
        for variable, gradient in zip(
            layer.trainable_variables, tape.gradient(loss, weights), strict=True
        ):
            gradient = tf.convert_to_tensor(gradient)
            assert np.isfinite(gradient).all(), variable.path
            assert gradient.dtype == variable.dtype
            assert np.any(gradient), f"no gradient reaches {variable.path}"

    if name in NOT_LOADED:
        return
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=False)
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)
