"""Tests of tfdeq.certificates.linear_head: logits and gradients agree with the layers."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfdeq.certificates.linear_head import readout
from tfdeq.models import BranchMeans


def test_logits_and_rows_are_those_of_the_layers():
    keras.utils.set_random_seed(0)
    head = [
        layers.AveragePooling2D(2, strides=1, padding="same"),
        layers.Dense(3, use_bias=False),
        layers.Dropout(0.5),
        layers.Reshape((5, 12)),
        layers.Activation("linear"),
        layers.Flatten(),
        layers.Dense(4, "softmax", bias_initializer="normal"),
    ]
    model = keras.Sequential([keras.Input((4, 5, 2)), *head])
    states = np.random.default_rng(0).normal(size=(6, 4, 5, 2))
    logits, rows = readout(head, tf.constant(states))
    np.testing.assert_allclose(tf.nn.softmax(logits), model(states), rtol=1e-5)
    moved = np.random.default_rng(1).normal(size=(6, 4, 5, 2))
    change = readout(head, tf.constant(states + moved))[0] - logits
    np.testing.assert_allclose(
        change, moved.reshape(6, -1) @ rows.numpy().reshape(4, -1).T, atol=1e-12
    )


def test_softmax_at_the_end_is_left_out():
    dense = layers.Dense(3)
    keras.Sequential([keras.Input((2,)), dense])
    states = tf.constant([[1.0, 2.0]], tf.float64)
    plain = readout([dense], states)
    for end in ([layers.Softmax()], [layers.Activation("softmax")]):
        for one, other in zip(readout([dense, *end], states), plain, strict=True):
            np.testing.assert_array_equal(one, other)


def test_global_pooling():
    pool = layers.GlobalAveragePooling2D()
    states = np.random.default_rng(0).normal(size=(2, 3, 4, 2))
    logits, rows = readout([pool], tf.constant(states))
    np.testing.assert_allclose(logits, states.mean(axis=(1, 2)))
    assert rows.shape == (2, 3, 4, 2)


def test_branches():
    keras.utils.set_random_seed(0)
    head = [BranchMeans(2), layers.Dense(3)]
    inputs = [keras.Input((4, 6, 2)), keras.Input((2, 3, 5))]
    model = keras.Model(inputs, head[1](head[0](inputs)))
    random = np.random.default_rng(0)
    states, moved = (
        [random.normal(size=(6, 4, 6, 2)), random.normal(size=(6, 2, 3, 5))] for _ in range(2)
    )
    logits, rows = readout(head, [tf.constant(branch) for branch in states])
    np.testing.assert_allclose(logits, model(states), rtol=1e-5, atol=1e-6)
    both = [tf.constant(one + other) for one, other in zip(states, moved, strict=True)]
    expected = sum(
        branch.reshape(6, -1) @ row.numpy().reshape(3, -1).T
        for branch, row in zip(moved, rows, strict=True)
    )
    np.testing.assert_allclose(readout(head, both)[0] - logits, expected, atol=1e-12)
