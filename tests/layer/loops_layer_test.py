"""`DEQLayer` inside Keras's and TensorFlow's loops gives the same results as without one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import DenseCell, fast, in_mode

LENGTH, BATCH, SIZE = 3, 2, 2
INPUTS = np.random.default_rng(0).normal(size=(BATCH, LENGTH, SIZE))
WEIGHTS = np.random.default_rng(1).normal(size=(BATCH, LENGTH, SIZE))
slow = pytest.mark.slow


def make_layer(**settings):
    layer = tfdeq.DEQLayer(
        DenseCell(SIZE, gain=0.3, dtype="float64"),
        solver=tfdeq.FixedPointIteration(25, 1e-12),
        dtype="float64",
        name="deq",
        **settings,
    )
    layer.build((None, SIZE))
    kernel = layer.trainable_variables[0]
    kernel.assign([[0.2, 0.1], [-0.1, 0.15]])
    return layer


class LayerCell(keras.layers.Layer):
    """An RNN's cell whose next state is the layer's equilibrium."""

    def __init__(self, layer):
        super().__init__(dtype="float64")
        self.layer = layer
        self.state_size = SIZE

    def build(self, _):
        self.built = True

    def call(self, inputs, states, training=None):
        state = self.layer(inputs + 0.5 * states[0], training=training)
        return state, [state]


def rnn(layer, x):
    return keras.layers.RNN(LayerCell(layer), return_sequences=True, dtype="float64")(
        x, training=True
    )


def rnn_by_hand(layer, x):
    states = [tf.zeros_like(x[:, 0])]
    for k in range(LENGTH):
        states.append(layer(x[:, k] + 0.5 * states[-1], training=True))
    return tf.stack(states[1:], axis=1)


def time_distributed(layer, x):
    return keras.layers.TimeDistributed(layer, dtype="float64")(x, training=True)


def map_fn(layer, x):
    found = tf.map_fn(lambda one: layer(one, training=True), tf.transpose(x, [1, 0, 2]))
    return tf.transpose(found, [1, 0, 2])


def cond(layer, x):
    def one(x):
        return tf.cond(tf.reduce_sum(x) < 1e9, lambda: layer(x, training=True), lambda: x)

    return tf.stack([one(x[:, k]) for k in range(LENGTH)], axis=1)


def by_hand(layer, x):
    return tf.stack([layer(x[:, k], training=True) for k in range(LENGTH)], axis=1)


def gradients(run, layer, mode):
    def compute(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            found = run(layer, x)
            loss = tf.reduce_sum(WEIGHTS * found)
        return found, *tape.gradient(loss, [*layer.trainable_variables, x])

    return [one.numpy() for one in in_mode(compute, mode)(tf.constant(INPUTS))]


@pytest.mark.parametrize(
    "mode", ["graph", *(pytest.param(m, marks=slow) for m in ("eager", "xla"))]
)
@pytest.mark.parametrize("adjoint", ["implicit", pytest.param(tfdeq.Unrolled(5), marks=slow)])
@pytest.mark.parametrize(
    ("run", "reference"),
    fast(
        [(rnn, rnn_by_hand)],
        [(rnn, rnn_by_hand), (time_distributed, by_hand), (map_fn, by_hand), (cond, by_hand)],
    ),
    ids=["rnn", "time_distributed", "map_fn", "cond"],
)
def test_values_gradients_and_metrics(run, reference, adjoint, mode):
    layer, other = make_layer(adjoint=adjoint), make_layer(adjoint=adjoint)
    found, known = gradients(run, layer, mode), gradients(reference, other, "eager")
    for one, expected in zip(found, known, strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-8, atol=1e-10)
        assert np.abs(one).max() > 1e-3
    report, known = layer.convergence_report(), other.convergence_report()
    if run in (rnn, map_fn, cond) and mode != "eager":
        # TensorFlow allows no new variables in the gradient of a loop or branch.
        known = {name: known[name] for name in ("steps", "residual", "converged")}
    # keras.layers.RNN calls its cell once before the loop, to find the structure of its output.
    assert report == pytest.approx(known, rel=0.1 if run is rnn else 1e-3)


@pytest.mark.slow
def test_a_sequence_of_unknown_length_cannot_train_in_time_distributed():
    """Keras maps over it by tf.vectorized_map, and TensorFlow drops custom gradients there."""
    layer = make_layer()

    @tf.function(input_signature=[tf.TensorSpec([None, None, SIZE], tf.float64)], autograph=False)
    def compute(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(time_distributed(layer, x))
        return tape.gradient(loss, layer.trainable_variables)

    with pytest.raises(LookupError, match="TimeDistributed uses where the length is unknown"):
        compute(tf.constant(INPUTS))


@pytest.mark.parametrize("mode", ["graph", pytest.param("eager", marks=slow)])
def test_the_penalty_of_a_solve_in_a_loop(mode):
    """tfdeq.jacobian_penalty inside tf.map_fn: its gradient with respect to tensors outside the loop."""

    def penalties(loop):
        def compute(a, x):
            def one(x):
                f = lambda z, a, x: tf.tanh(tf.matmul(z, a) + x)  # noqa: E731
                return tfdeq.jacobian_penalty(f, 0.1 * x, (a, x), seed=[1, 2])

            with tf.GradientTape() as tape:
                tape.watch([a, x])
                found = tf.map_fn(one, x) if loop else tf.stack([one(o) for o in tf.unstack(x)])
                total = tf.reduce_sum(found)
            return found, *tape.gradient(total, [a, x])

        a = tf.constant([[0.2, 0.1], [-0.1, 0.15]], tf.float64)
        return in_mode(compute, mode if loop else "eager")(a, tf.constant(INPUTS))

    for one, expected in zip(penalties(True), penalties(False), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-10)
        assert np.abs(expected).max() > 1e-3


def test_a_layer_with_a_penalty_in_an_rnn_says_that_its_loss_stays_there():
    """The layer's loss belongs to the loop's body; this raises an error instead of giving zero."""
    layer = make_layer(jacobian_penalty=0.5, jacobian_penalty_fraction=1.0)

    def compute(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(rnn(layer, x)) + tf.add_n(layer.losses)
        return tape.gradient(loss, layer.trainable_variables)

    with pytest.raises((TypeError, ValueError), match="out of scope"):
        in_mode(compute, "graph")(tf.constant(INPUTS))
