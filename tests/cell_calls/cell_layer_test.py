"""Tests of tfdeq.cell_calls.cell_layer, through `DEQLayer`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfdeq
from tests.support.cases import DenseCell, PairCell

UNITS = 4


def _x(batch=6):
    return np.random.default_rng(0).normal(size=(batch, UNITS)).astype("float32")


class WideCell(keras.layers.Layer):
    def call(self, z, x):
        return ops.concatenate([z, x], axis=-1)


def test_cell_of_the_wrong_shape_fails_at_build():
    with pytest.raises(ValueError, match=r"\(6, 4\) float32; it returned \(6, 8\) float32") as info:
        tfdeq.DEQLayer(WideCell(name="wide"), name="deq")(_x())
    message = str(info.value)
    assert "The cell 'wide' of 'deq'" in message
    assert "for an input x of (6, 4) float32" in message
    assert "initial_state(x)" in message


def test_cell_that_cannot_be_applied_fails_at_build_with_its_reason():
    cell = DenseCell(UNITS + 1, name="narrow")
    with pytest.raises(
        ValueError, match=r"'narrow'.*could not be applied to a state z of \(6, 4\)"
    ):
        tfdeq.DEQLayer(cell)(_x())


def test_a_functional_cell_has_a_state_of_its_own_shape():
    keras.utils.set_random_seed(1)
    z, a, b = keras.Input((4,)), keras.Input((3,)), keras.Input((2,))
    drive = keras.layers.Dense(4)(keras.layers.Concatenate()([a, b]))
    small = keras.initializers.RandomNormal(stddev=0.2)
    output = keras.ops.tanh(keras.layers.Dense(4, kernel_initializer=small)(z) + drive)
    layer = tfdeq.DEQLayer(keras.Model([z, a, b], output))
    solution = layer([tf.ones([5, 3]), tf.ones([5, 2])], return_solution=True)
    assert solution.z.shape == (5, 4)
    assert solution.converged.numpy().all()


def test_a_sequential_cell_is_refused_with_what_to_use():
    with pytest.raises(ValueError, match="must have two inputs, z and x"):
        tfdeq.DEQLayer(keras.Sequential([keras.layers.Dense(3)]))


def test_a_start_unlike_the_state_is_refused():
    layer = tfdeq.DEQLayer(DenseCell(4))
    with pytest.raises(ValueError, match=r"z0 must be like the state of .*\(2, 4\).*\(2, 5\)"):
        layer(tf.ones([2, 4]), z0=tf.ones([2, 5]))


def test_the_input_s_dtypes_are_built_and_saved_with_the_layer():
    layer = tfdeq.DEQLayer(PairCell(UNITS))
    x = {"value": tf.ones([3, UNITS]), "token": tf.constant([0, 4, 2])}
    layer(x)
    config = layer.get_build_config()
    assert config["x_dtypes"] == {"value": "float32", "token": "int32"}
    again = tfdeq.DEQLayer.from_config(layer.get_config())
    again.build_from_config(config)
    assert [w.shape for w in again.weights] == [w.shape for w in layer.weights]
    spec = layer.compute_output_spec(
        keras.tree.map_structure(lambda leaf: keras.KerasTensor((None, *leaf.shape[1:])), x)
    )
    shapes = keras.tree.map_structure(lambda leaf: tuple(leaf.shape), spec)
    found = keras.tree.map_structure(lambda leaf: (None, *leaf.shape[1:]), layer(x))
    assert shapes == found
