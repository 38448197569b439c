"""Tests of tfdeq.cell_calls.pure_cell, through the layer: injection, variables, precision and statistics."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfdeq
from tests.support.cases import MODES, DenseCell, NoisyCell, in_mode

TIGHT = tfdeq.Broyden(max_steps=50, tolerance=1e-6)
EXACT = tfdeq.Broyden(max_steps=60, tolerance=1e-13)
UNITS = 4


def _x(batch=6, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=(batch, UNITS)).astype(dtype)


class InjectingCell(DenseCell):
    """Transforms its input once per solve; the transform has weights."""

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        self.injection = keras.layers.Dense(units, dtype=self.dtype_policy, name="injection")
        self.injected = 0

    def inject(self, x):
        self.injected += 1
        return {"drive": self.injection(x)}

    def initial_state(self, x):
        return ops.zeros_like(x)

    def call(self, z, x):
        return super().call(z, x["drive"])


class ConstantCell(keras.layers.Layer):
    """Creates a constant and a variable in its build; the length of its input may be unknown."""

    def build(self, shape):
        self.mask = ops.tril(ops.ones((UNITS, UNITS)))
        self.scale = keras.Variable(np.full(UNITS, 0.5, "float32"))
        self.dense = keras.layers.Dense(UNITS)
        self.dense.build(shape)

    def call(self, z, x):
        return ops.tanh(x + self.scale * (self.dense(z) @ self.mask))


def test_what_the_cells_build_makes_lives_on():
    layer = tfdeq.DEQLayer(ConstantCell(), TIGHT)
    inputs = keras.Input((UNITS,))
    model = keras.Model(inputs, layer(inputs))
    x = tf.constant(_x(3))
    assert len(model.trainable_variables) == 3
    np.testing.assert_allclose(layer.cell(model(x), x), model(x), atol=1e-5)


class FineScale(keras.layers.Layer):
    """Multiplies by the rounded value of a weight just above one, minus one, in units of 2^-12."""

    def build(self, _):
        initial = keras.initializers.Constant(1 + 2**-12)
        self.weight = self.add_weight(shape=(), initializer=initial)

    def call(self, x):
        return x * 2**12 * (self.weight - 1)


@pytest.mark.parametrize(("dtype", "kept"), [("float32", 1.0), ("mixed_bfloat16", 0.0)])
def test_a_layer_in_a_cell_reads_its_weights_in_its_own_precision(dtype, kept):
    """As in Keras: under a mixed policy a layer that computes in float32 sees exact weights."""

    class Cell(keras.layers.Layer):
        def build(self, _):
            self.fine = FineScale(dtype=dtype)
            self.fine.build(None)

        def call(self, z, x):
            return x + 0.5 * ops.cast(self.fine(z), x.dtype)

    layer = tfdeq.DEQLayer(Cell(dtype="mixed_bfloat16"), TIGHT, dtype="mixed_bfloat16")
    with tf.GradientTape() as tape:
        z = layer(tf.ones([2, 1]))
    # z = 1 + kept z / 2
    np.testing.assert_array_equal(tf.cast(z, tf.float32), np.full((2, 1), 1 / (1 - kept / 2)))
    gradient = tape.gradient(z, layer.trainable_variables[0].value)
    assert gradient.dtype == tf.float32
    # dz = (2^11 z) / (1 - kept / 2) for each of two
    np.testing.assert_allclose(gradient, 2**12 / (1 - kept / 2) ** 2, rtol=1e-2)


def test_what_a_cell_says_is_handed_on_where_it_is_traced():
    class Refusing(keras.layers.Layer):
        def call(self, z, x):
            raise ValueError("wants a length that is even")

    inputs = keras.Input((None, UNITS))
    with pytest.raises(ValueError, match="The cell 'refusing'.*could not be applied") as caught:
        tfdeq.DEQLayer(Refusing())(inputs)
    assert "wants a length that is even" in str(caught.value)
    assert "_Traced" not in str(caught.value)


def test_injection_happens_once_and_gets_its_gradient():
    layer = tfdeq.DEQLayer(
        InjectingCell(UNITS, dtype="float64"), EXACT, dtype="float64", convergence_metrics=False
    )
    x = tf.constant(_x(3, "float64"))
    layer(x, explicit_steps=1)  # builds it
    layer.cell.injected = 0
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) ** 2)
    assert layer.cell.injected == 1
    kernel = layer.cell.injection.kernel
    gradient = tape.gradient(loss, kernel.value).numpy()
    start, h = kernel.numpy(), 1e-5
    values = []
    for sign in (1, -1):
        kernel.assign(start + sign * h * np.eye(UNITS))
        values.append(float(tf.reduce_sum(layer(x) ** 2)))
    np.testing.assert_allclose(np.trace(gradient), (values[0] - values[1]) / (2 * h), rtol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_dropout_mask_stays_for_the_solve_and_changes_with_the_call(mode):
    layer = tfdeq.DEQLayer(NoisyCell(UNITS, rate=0.5), TIGHT)
    x = tf.constant(_x(16))
    layer(x, explicit_steps=1)  # builds it
    call = in_mode(lambda: layer(x, training=True, return_solution=True), mode)
    first, second = call(), call()
    for solution in (first, second):
        assert (solution.residual.numpy() <= 1e-6).all(), "a mask that changed would leave 0.1"
    assert np.abs(first.z - second.z).max() > 1e-2


@pytest.mark.parametrize("mode", MODES)
def test_state_advances_once_a_call_at_the_equilibrium(mode):
    layer = tfdeq.DEQLayer(NoisyCell(UNITS, rate=0.5), TIGHT)
    x = tf.constant(_x(16))
    layer(x, explicit_steps=1)  # builds it
    # atol covers the last bits, which depend on the order of sums.
    norm, dropout = layer.cell.norm, layer.cell.dropout
    norm.moving_mean.assign(np.full(UNITS, 3.0))
    norm.moving_variance.assign(np.full(UNITS, 5.0))
    seed = dropout.seed_generator.state
    before = seed.numpy()

    in_mode(lambda: layer(x), mode)()
    np.testing.assert_array_equal(seed.numpy(), before)
    np.testing.assert_array_equal(norm.moving_mean, np.full(UNITS, 3.0))

    def apply():
        """Returns the equilibrium and the input of the norm there, with the mask of the call."""
        with keras.StatelessScope(state_mapping=[(seed, tf.constant(before))]):
            noise = layer.cell.dropout(tf.ones_like(x), training=True)
        z = layer(x, training=True)
        return noise, z

    noise, z = in_mode(apply, mode)()
    dense = layer.cell.dense
    y = (noise.numpy() * z.numpy()) @ dense.kernel.numpy() + dense.bias.numpy() + x.numpy()
    np.testing.assert_allclose(norm.moving_mean, 0.9 * 3.0 + 0.1 * y.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, 0.9 * 5.0 + 0.1 * y.var(0), rtol=1e-5)
    # One draw of the generator for this call; the second word counts draws.
    assert (seed.numpy() - before).tolist() == [0, 1]


def test_batch_statistics_in_training_and_moving_ones_else():
    layer = tfdeq.DEQLayer(NoisyCell(UNITS, rate=0.0), TIGHT)
    x = _x(16)
    layer(x, explicit_steps=1)  # builds it
    z = layer(x, training=True).numpy()
    y = z @ layer.cell.dense.kernel.numpy() + x
    # The norm's epsilon is 1e-3.
    np.testing.assert_allclose(
        np.arctanh(z), (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-3), rtol=1e-4, atol=1e-4
    )
    alone = layer(x[:1]).numpy()
    np.testing.assert_allclose(alone, layer(x).numpy()[:1], rtol=1e-5, atol=1e-6)


class FrozenPart(DenseCell):
    """A cell with weights that are not trained."""

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        self.fixed = keras.layers.Dense(units, name="fixed")
        self.fixed.trainable = False

    def call(self, z, x):
        return super().call(z, self.fixed(x))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_frozen_weights_stay_as_they_are(policy):
    keras.config.set_dtype_policy(policy)
    layer = tfdeq.DEQLayer(FrozenPart(UNITS))
    x = _x()
    layer(x, explicit_steps=1)  # builds it
    before = layer.cell.fixed.kernel.numpy()
    layer(x, training=True)
    np.testing.assert_array_equal(layer.cell.fixed.kernel.numpy(), before)


def test_functional_model_as_cell():
    z, x = keras.Input((UNITS,), name="z"), keras.Input((UNITS,), name="x")
    hidden = keras.layers.Dense(UNITS, kernel_initializer=keras.initializers.Orthogonal(0.5))(z)
    cell = keras.Model([z, x], keras.ops.tanh(keras.layers.Dropout(0.5)(hidden) + x))
    layer = tfdeq.DEQLayer(cell, TIGHT)
    data = _x()
    solution = layer(data, return_solution=True)
    z = cell([solution.z, tf.constant(data)])
    np.testing.assert_allclose(z, solution.z, atol=3e-6)
    noisy = layer(data, training=True, return_solution=True)
    assert noisy.converged.numpy().all()
    assert np.abs(noisy.z - solution.z).max() > 1e-3
