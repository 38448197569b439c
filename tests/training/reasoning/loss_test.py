"""The settling penalty: its value and gradient, and no effect if its weight is 0."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeq.adjoints import Unrolled
from tfdeq.cells import RecallConvolution
from tfdeq.models import Reasoner
from tfdeq.solvers import FixedPointIteration
from tfdeq.training.reasoning.loss import PuzzleLoss
from tfdeq.training.task import CallSettings

SETTINGS = CallSettings(0, tf.constant(3), training=True)
INPUTS = np.array([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]], "int32")
TARGETS = np.cumsum(INPUTS, axis=1).astype("int32") % 2


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    solver = FixedPointIteration(max_steps=3, tolerance=1e-9)
    made = Reasoner(2, 2, RecallConvolution(4, 1), solver, Unrolled(3))
    made.build((None, 5))
    return made


def _value(model, weight):
    return PuzzleLoss(model, weight)((INPUTS, TARGETS), SETTINGS, ())


def test_value(model):
    """Computed by hand from the states after three and four applications."""
    states = [model(INPUTS, explicit_steps=steps, return_solution=True)[1].z for steps in (3, 4)]
    logits = model.read(states[0])
    nats = keras.losses.sparse_categorical_crossentropy(TARGETS, logits, from_logits=True)
    moved = np.linalg.norm(states[1] - states[0], axis=-1) / np.linalg.norm(states[1], axis=-1)
    found = _value(model, 0.5)
    np.testing.assert_allclose(found.measures["moved"], moved.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.value, np.mean(nats) + 0.5 * moved.mean(), rtol=1e-5)
    right = np.argmax(logits, -1) == TARGETS
    np.testing.assert_allclose(found.measures["places"], right.mean())
    np.testing.assert_allclose(found.measures["exact"], right.all(1).mean())


def test_gradient_is_the_weight_times_the_penalty_s_own(model):
    weights = model.trainable_variables

    def gradient(weight):
        with tf.GradientTape() as tape:
            value = _value(model, weight).value
        return tape.gradient(value, weights)

    none, one, two = gradient(0.0), gradient(1.0), gradient(2.0)
    for a, b, c in zip(none, one, two, strict=True):
        a, b, c = map(tf.convert_to_tensor, (a, b, c))
        np.testing.assert_allclose(c - a, 2 * (b - a), atol=2e-5)  # float32
    assert (
        max(float(tf.reduce_max(abs(b - a))) for a, b in zip(none[1:], one[1:], strict=True)) > 1e-3
    )


def test_a_state_at_rest_has_a_finite_gradient(model):
    """At an equilibrium lengths are 0, where the gradient of a plain square root is NaN."""
    settings = SETTINGS._replace(max_steps=tf.constant(400))
    long = Reasoner(
        2, 2, model.cell, FixedPointIteration(max_steps=400, tolerance=1e-9), Unrolled(2)
    )
    long.build((None, 5))
    with tf.GradientTape() as tape:
        value = PuzzleLoss(long, 1.0)((INPUTS, TARGETS), settings, ()).value
    for part in tape.gradient(value, long.trainable_variables):
        assert np.isfinite(tf.convert_to_tensor(part)).all()
