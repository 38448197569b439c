"""Tests of tfdeq.cell_calls.functional_cell, through the layer: functional models as cells."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfdeq
from tests.support.cases import MODES, DenseCell, fast, in_mode

TIGHT = tfdeq.Broyden(max_steps=50, tolerance=1e-6)


def _small():
    return keras.initializers.RandomNormal(stddev=0.1, seed=1)


def _images(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


def _convolution_cell(channels=3):
    z, x = keras.Input((None, None, 3)), keras.Input((None, None, channels))
    mixed = keras.layers.Conv2D(3, 3, padding="same", kernel_initializer=_small())(z)
    drive = keras.layers.Conv2D(3, 1, kernel_initializer=_small())(x)
    return keras.Model([z, x], ops.tanh(mixed + drive))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", fast([5], [3, 5]))
@pytest.mark.slow
def test_sizes_that_the_cell_leaves_open_are_those_of_x(channels, mode):
    layer = tfdeq.DEQLayer(_convolution_cell(channels), TIGHT)
    call = in_mode(lambda x: layer(x), mode)
    for size in ((6, 7), (4, 3)):
        x = _images(2, *size, channels)
        z = call(x)
        assert z.shape == (2, *size, 3)
        np.testing.assert_allclose(layer.cell([z, x]), z, atol=1e-5)
        np.testing.assert_allclose(layer(x, z0=tf.ones_like(z)), z, atol=1e-5)


@pytest.mark.slow
def test_sizes_may_be_unknown_in_the_graph(tmp_path):
    inputs = keras.Input((None, None, 5))
    model = keras.Model(inputs, tfdeq.DEQLayer(_convolution_cell(5), TIGHT)(inputs))
    assert model.output_shape == (None, None, None, 3)
    x = _images(2, 6, 7, 5)
    expected = model(x)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), expected, atol=1e-5)
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(served.serve(x), expected, atol=1e-5)


def _slots_cell():
    """A cell with any number of slots, which x [B, 4] does not determine."""
    z, x = keras.Input((None, 4)), keras.Input((4,))
    return keras.Model([z, x], ops.tanh(0.3 * z + x[:, None]))


def test_a_z0_decides_what_x_does_not_say(tmp_path):
    layer, x = tfdeq.DEQLayer(_slots_cell(), TIGHT), tf.ones([2, 4])
    for slots in (3, 5):
        z = layer(x, z0=tf.zeros([2, slots, 4]))
        assert z.shape == (2, slots, 4)
        np.testing.assert_allclose(layer.cell([z, x]), z, atol=1e-5)
    inputs, start = keras.Input((4,)), keras.Input((3, 4))
    model = keras.Model([inputs, start], layer(inputs, z0=start))
    assert model.output_shape == (None, 3, 4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded([x, tf.zeros([2, 3, 4])])[:, 0], z[:, 0], atol=1e-5)
    with pytest.raises(ValueError, match=r"z0 must be like the state"):
        layer(x, z0=tf.zeros([2, 3, 5]))


def test_a_z0_of_another_length_than_x():
    z, x = keras.Input((None, 4)), keras.Input((None, 4))
    cell = keras.Model([z, x], ops.tanh(0.3 * z + ops.mean(x, axis=1, keepdims=True)))
    layer, x = tfdeq.DEQLayer(cell, TIGHT), _images(2, 7, 4)
    assert layer(x, z0=tf.zeros([2, 3, 4])).shape == (2, 3, 4)
    assert layer(x).shape == (2, 7, 4)


def test_without_a_z0_it_says_what_is_missing():
    layer = tfdeq.DEQLayer(_slots_cell())
    with pytest.raises(
        ValueError, match=r"its shape is \(None, None, 4\), and the input x, \(2, 4\)"
    ):
        layer(tf.ones([2, 4]))


@pytest.mark.parametrize("mode", MODES)
def test_a_model_of_two_outputs_has_a_state_of_two_tensors(mode, tmp_path):
    first, second, x = keras.Input((4,)), keras.Input((2,)), keras.Input((3,))
    dense = keras.layers.Dense(4, kernel_initializer=_small())
    outputs = [
        ops.tanh(dense(ops.concatenate([first, second], axis=-1)) + x[:, :1]),
        0.3 * second + ops.mean(first, axis=-1, keepdims=True) * x[:, :2],
    ]
    layer, x = tfdeq.DEQLayer(keras.Model([first, second, x], outputs), TIGHT), _images(5, 3)
    z = in_mode(lambda x: layer(x), mode)(x)
    for one, again in zip(z, layer.cell([*z, x]), strict=True):
        np.testing.assert_allclose(one, again, atol=1e-5)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    for one, again in zip(z, keras.saving.load_model(tmp_path / "model.keras")(x), strict=True):
        np.testing.assert_allclose(one, again, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.layers.Dense(4),
        lambda: keras.layers.Lambda(lambda t: t),
        lambda: keras.layers.Add(),
        lambda: keras.Model(i := keras.Input((4,)), 0.5 * i),
    ],
)
def test_a_cell_of_one_input_is_refused(make):
    with pytest.raises(ValueError, match="cell must have"):
        tfdeq.DEQLayer(make())


# --- TimeDistributed --------------------------------------------------------------------------------


@pytest.mark.parametrize("length", fast([None], [5, None]))
@pytest.mark.slow
def test_a_layer_is_applied_at_every_time(length, tmp_path):
    layer = tfdeq.DEQLayer(DenseCell(4), TIGHT)
    inputs = keras.Input((length, 4))
    model = keras.Model(inputs, keras.layers.TimeDistributed(layer)(inputs))
    assert model.output_shape == (None, length, 4)
    x = _images(3, 5, 4)
    z = model(x)
    for time in range(5):
        np.testing.assert_allclose(z[:, time], layer(x[:, time]), atol=1e-5)
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(x, z, verbose=0)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(
        keras.saving.load_model(tmp_path / "model.keras")(x), model(x), atol=1e-5
    )


@pytest.mark.parametrize("length", fast([None], [5, None]))
def test_a_cell_may_apply_a_layer_at_every_time(length):
    z, x = keras.Input((length, 4)), keras.Input((length, 4))
    dense = keras.layers.Dense(4, kernel_initializer=_small())
    cell = keras.Model([z, x], ops.tanh(keras.layers.TimeDistributed(dense)(z) + x))
    layer, x = tfdeq.DEQLayer(cell, TIGHT), _images(3, 5, 4)
    z = layer(x)
    np.testing.assert_allclose(ops.tanh(dense(z) + x), z, atol=1e-5)
    inputs = keras.Input((length, 4))
    model = keras.Model(inputs, layer(inputs))
    np.testing.assert_allclose(model.predict(x, verbose=0), z, atol=1e-5)


def test_output_shape_is_the_state_of_the_input_shape():
    assert tfdeq.DEQLayer(DenseCell(4)).compute_output_shape((None, 7, 4)) == (None, 7, 4)
    layer = tfdeq.DEQLayer(tfdeq.cells.DenseCell(3))
    assert layer.compute_output_shape((2, 5)) == (2, 3)
    nest = tfdeq.DEQLayer(tfdeq.cells.stacked(DenseCell(4), tfdeq.cells.DenseCell(3)))
    assert nest.compute_output_shape((2, 4)) == ((2, 4), (2, 3))
