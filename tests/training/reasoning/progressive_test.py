"""The progressive loss: numbers of applications, with and without a gradient, and their bounds."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import fast
from tfdeq.adjoints import Unrolled
from tfdeq.cell_calls.batch_part import part_of_batch
from tfdeq.cells import RecallConvolution
from tfdeq.models import Reasoner
from tfdeq.solvers import FixedPointIteration
from tfdeq.training.reasoning import progressive
from tfdeq.training.reasoning.loss import PuzzleLoss
from tfdeq.training.task import CallSettings

INPUTS = np.array([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]], "int32")
TARGETS = np.cumsum(INPUTS, axis=1).astype("int32") % 2
SETTINGS = CallSettings(0, tf.constant(5), training=True)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    solver = FixedPointIteration(max_steps=5, tolerance=1e-9)
    made = Reasoner(2, 2, RecallConvolution(4, 1), solver, Unrolled(5))
    made.build((None, 5))
    return made


def _draw(monkeypatch, first, count):
    monkeypatch.setattr(
        progressive, "_drawn", lambda low, end: tf.constant(count if low else first)
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_the_last_applications_carry_the_gradient(model, monkeypatch, compiled):
    _draw(monkeypatch, 2, 1)

    def gradients():
        with tf.GradientTape() as tape:
            z = progressive.progressive_state(model, INPUTS, tf.constant(5), 5)
            value = tf.reduce_sum(model.read(z) ** 2)
        return z, tape.gradient(value, model.cell.trainable_variables)

    z, found = (tf.function(gradients, jit_compile=True) if compiled else gradients)()
    two = model(INPUTS, explicit_steps=2, return_solution=True)[1].z
    with tf.GradientTape() as tape:
        three = model.applied(tf.stop_gradient(two), INPUTS)
        value = tf.reduce_sum(model.read(three) ** 2)
    np.testing.assert_allclose(z, three, atol=1e-5)
    for one, other in zip(found, tape.gradient(value, model.cell.trainable_variables), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3 * np.abs(other).max())  # float32, fused


def _nats(model, steps):
    logits = model(INPUTS, explicit_steps=steps)
    return float(
        np.mean(keras.losses.sparse_categorical_crossentropy(TARGETS, logits, from_logits=True))
    )


@pytest.mark.parametrize("share", fast([0.25], [0.25, 1.0]))
def test_the_loss_is_a_mean_of_both(model, monkeypatch, share):
    _draw(monkeypatch, 1, 2)
    loss = PuzzleLoss(model, 0.0, share, most=5)
    expected = share * _nats(model, 3) + (1 - share) * _nats(model, 5)
    assert float(loss((INPUTS, TARGETS), SETTINGS, ()).value) == pytest.approx(expected, rel=1e-5)
    # Outside training, and with explicit steps, there is no progressive loss.
    for settings in (SETTINGS._replace(training=False), SETTINGS._replace(explicit_steps=5)):
        value = float(loss((INPUTS, TARGETS), settings, ()).value)
        assert value == pytest.approx(_nats(model, 5), rel=1e-5)


def test_all_pairs_within_the_budget_are_drawn_and_alike_in_all_parts():
    def pair(part, number):
        with part_of_batch(part, 2, [0, number]):
            first = progressive._drawn(0, tf.constant(3))
            return int(first), int(progressive._drawn(1, 3 - first + 1))

    pairs = [pair(0, number) for number in range(60)]
    assert set(pairs) == {(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1)}
    assert pairs == [pair(1, number) for number in range(60)]
