"""best_of: which of several starts' answers is chosen, and the figures of the choice."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode


def _two_sided():
    """z = tanh(3 z + x): for small x one equilibrium on either side of 0."""
    z, x = keras.Input((1,)), keras.Input((1,))
    cell = keras.Model([z, x], keras.ops.tanh(3.0 * z + x))
    return tfdeq.DEQLayer(cell, solver=tfdeq.FixedPointIteration(max_steps=60, tolerance=1e-5))


X = tf.constant([[0.01], [-0.02], [5.0]])


def test_the_usual_start_alone():
    layer = _two_sided()
    best, usual = tfdeq.best_of(layer, X, starts=1), layer(X, return_solution=True)
    np.testing.assert_array_equal(best.outputs, usual.z)
    for name in ("residual", "steps", "status", "converged"):
        np.testing.assert_array_equal(getattr(best, name), getattr(usual, name))
    assert best.agreement.numpy().tolist() == [1.0] * 3
    assert best.start.numpy().tolist() == [0] * 3


def test_what_most_starts_agree_on():
    """Each start ends on the side of its noise; the side with the most starts is chosen."""
    layer, starts = _two_sided(), 15
    best = tfdeq.best_of(layer, X, starts, seed=3)
    noise = tf.random.stateless_normal([starts, 1], [3, 0], alg="philox").numpy()
    sides = []
    for x in X.numpy()[:, 0]:
        z0 = tf.constant(np.concatenate([[[0.0]], noise[1:]]), tf.float32)
        ends = layer(tf.fill([starts, 1], x), z0=z0).numpy()[:, 0]
        sides.append((ends > 0).sum())
    for row, above in enumerate(sides):
        assert (best.outputs[row, 0] > 0) == (above > starts / 2)
        np.testing.assert_allclose(best.agreement[row], max(above, starts - above) / starts)
    assert best.agreement[2] == 1.0
    assert best.converged.numpy().all()


def test_a_settled_answer_comes_before_what_more_starts_agree_on():
    """A cell that settles only from starts above 0.5, and otherwise cycles between four states."""

    class Cell(keras.layers.Layer):
        def call(self, z, x):
            turned = keras.ops.stack([-z[:, 1], z[:, 0]], axis=1)
            settling = keras.ops.stack([0.5 * z[:, 0] + 1.0, 0.5 * z[:, 1]], axis=1)
            return keras.ops.where(z[:, :1] > 0.5, settling, turned) + 0.0 * x

    layer = tfdeq.DEQLayer(Cell(), solver=tfdeq.FixedPointIteration(max_steps=40))
    best = tfdeq.best_of(layer, tf.zeros([1, 2]), starts=12, noise=0.4, seed=1)
    assert best.converged.numpy().tolist() == [True]
    np.testing.assert_allclose(best.outputs, [[2.0, 0.0]], atol=1e-2)


@pytest.mark.parametrize("mode", MODES)
def test_in_every_mode_and_of_any_batch(mode):
    """The same in eager mode, a graph and XLA; a sample's answer does not depend on its batch."""
    layer = _two_sided()

    def solve(x):
        return tuple(tfdeq.best_of(layer, x, 5))

    expected = tfdeq.best_of(layer, X, 5)
    for name, value in zip(tfdeq.BestOf._fields, in_mode(solve, mode)(X), strict=True):
        np.testing.assert_allclose(value, getattr(expected, name), atol=1e-6)
    alone = tfdeq.best_of(layer, X[1:2], 5)
    np.testing.assert_allclose(alone.outputs, expected.outputs[1:2], atol=1e-6)
    np.testing.assert_array_equal(alone.agreement, expected.agreement[1:2])
    np.testing.assert_array_equal(alone.steps, expected.steps[1:2])


def test_of_a_model():
    """Answers are compared by their classes; tolerance and budget are each sample's own."""
    inputs = keras.Input((1,))
    z = _two_sided()(inputs)
    model = keras.Model(inputs, keras.ops.concatenate([z, 0.1 - z], axis=-1))
    best = tfdeq.best_of(
        model, X, 9, max_steps=tf.constant([60, 60, 2]), tolerance=tf.constant([1e-5, 1e-2, 1e-9])
    )
    assert best.outputs.shape == (3, 2)
    assert best.converged.numpy().tolist() == [True, True, False]
    assert best.steps[2] == 9 * 2
    assert best.agreement[2] == 1.0  # the classes agree, although the states have not met


def test_the_callers_own_comparison():
    best = tfdeq.best_of(
        _two_sided(),
        X,
        6,
        same=lambda a, b: tf.equal(a[:, 0], a[:, 0]),
    )
    assert best.agreement.numpy().tolist() == [1.0] * 3


@pytest.mark.parametrize("mode", fast(["graph"], ["eager", "graph"]))
def test_each_sample_has_its_own_number_of_starts(mode):
    """A sample's answer is that of best_of with its number of starts, and it only pays for these."""
    layer = _two_sided()

    def solve(starts):
        return tuple(tfdeq.best_of(layer, X, starts))

    given = tf.constant([1, 7, 0])
    found = tfdeq.BestOf(*in_mode(solve, mode)(given))
    for row, starts in enumerate([1, 7, 1]):
        alone = tfdeq.best_of(layer, X[row : row + 1], starts)
        for name in tfdeq.BestOf._fields:
            value = getattr(found, name)[row : row + 1]
            np.testing.assert_allclose(value, getattr(alone, name), atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"starts": 0}, "starts must be"),
        ({"noise": -1.0}, "noise must be >= 0; received -1.0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        tfdeq.best_of(_two_sided(), X, **settings)


def test_a_model_without_an_equilibrium():
    with pytest.raises(ValueError, match="best_of needs a DEQLayer, or a model that calls one"):
        tfdeq.best_of(keras.layers.Dense(2), tf.ones([2, 3]))
