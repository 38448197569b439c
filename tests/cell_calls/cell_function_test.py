"""Tests of tfdeq.cell_calls.cell_function, through the layer: the side effects of cells."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfdeq
from tests.support.cases import MODES, NoisyCell, fast, in_mode

TIGHT = tfdeq.Broyden(max_steps=60, tolerance=1e-6)
EXACT = tfdeq.Broyden(max_steps=80, tolerance=1e-13)
UNITS = 3


def _x(batch=4, dtype="float32", seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=(batch, UNITS)).astype(dtype))


def _small(gain=0.3):
    return keras.initializers.RandomNormal(stddev=gain, seed=2)


# --- losses -----------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tfdeq_tests")
class LossCell(keras.layers.Layer):
    """Adds losses of its state, its input and its weights, directly and by a regulariser."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(
            UNITS,
            kernel_initializer=_small(),
            activity_regularizer=keras.regularizers.L2(0.3),
            kernel_regularizer=keras.regularizers.L2(0.1),
            dtype=self.dtype_policy,
        )

    def call(self, z, x):
        y = ops.tanh(self.dense(z) + x)
        self.add_loss(ops.mean(z**2 * x) + ops.sum(self.dense.kernel**2 * ops.mean(z)))
        return y


def _by_hand(cell, x, applications=80):
    """Returns the losses of the last of many plain calls, and its output."""
    z = tf.zeros_like(x)
    for _ in range(applications):
        z = cell(z, x, training=True)
    return z, cell.losses


@pytest.mark.parametrize("training", fast([True], [False, True]))
def test_losses_of_the_cell_count_once_at_the_equilibrium(training):
    layer = tfdeq.DEQLayer(LossCell(), TIGHT)
    x = _x()
    layer(x, explicit_steps=1)  # builds it
    _, expected = _by_hand(layer.cell, x)
    for _ in range(2):
        layer(x, training=training)
        # Two from the call and one from the weights, as for a plain Keras layer (in another order).
        np.testing.assert_allclose(np.sort(layer.losses), np.sort(expected), rtol=1e-5)
    assert len(layer.losses) == 3
    assert not any(part._loss_ids for part in layer._flatten_layers(include_self=False))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("adjoint", fast(["implicit"], ["implicit", tfdeq.Unrolled(80)]))
def test_gradient_of_the_losses_against_finite_differences(mode, adjoint):
    """They are functions of z*, x and the weights; z* depends on x and the weights."""
    layer = tfdeq.DEQLayer(
        LossCell(dtype="float64"), EXACT, adjoint, dtype="float64", convergence_metrics=False
    )
    x = _x(dtype="float64")
    layer(x, explicit_steps=1)  # builds it
    kernel = layer.cell.dense.kernel

    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = layer(x, training=True)
            loss = tf.add_n(layer.losses) + tf.reduce_sum(tf.sin(z))
        return tape.gradient(loss, [kernel.value, x])

    d_kernel, d_x = in_mode(gradients, mode)(x)
    base, random, h = kernel.numpy(), np.random.default_rng(3), 1e-4
    along, x_along = random.normal(size=base.shape), random.normal(size=x.shape)

    def loss(t):
        kernel.assign(base + t * along)
        z, losses = _by_hand(layer.cell, x + t * x_along)
        kernel.assign(base)
        return float(tf.add_n(losses) + tf.reduce_sum(tf.sin(z)))

    difference = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
    received = np.sum(d_kernel * along) + np.sum(d_x * x_along)
    np.testing.assert_allclose(received, difference, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", fast([False], [False, True]))
def test_losses_of_the_cell_enter_fit_and_evaluate(jit_compile):
    inputs = keras.Input((UNITS,))
    layer = tfdeq.DEQLayer(LossCell(), TIGHT)
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit_compile)
    x = _x()
    z, losses = _by_hand(layer.cell, x)
    expected = float(tf.add_n(losses) + tf.reduce_mean(tf.square(z)))
    fitted = model.fit(x, tf.zeros_like(x), batch_size=4, verbose=0).history["loss"][0]
    np.testing.assert_allclose(fitted, expected, rtol=1e-5)
    evaluated = model.evaluate(x, tf.zeros_like(x), verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(evaluated, expected, rtol=1e-5)


@pytest.mark.parametrize("policy", fast(["mixed_bfloat16"], ["mixed_bfloat16", "mixed_float16"]))
@pytest.mark.slow
def test_losses_in_half_precision_can_be_added_to_those_of_fit(policy):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((UNITS,))
    layer = tfdeq.DEQLayer(LossCell(), tfdeq.Anderson(tolerance=2e-2))
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse", jit_compile=False)
    assert np.isfinite(model.fit(_x(), _x(), verbose=0).history["loss"]).all()
    layer(_x(), training=True)
    assert {loss.dtype for loss in layer.losses} == {tf.float32}


@pytest.mark.slow
def test_losses_of_a_nested_layer_count_once():
    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = tfdeq.DEQLayer(LossCell(), TIGHT, jacobian_penalty=1.0)

        def call(self, z, x):
            return 0.5 * self.inner(0.1 * z + x) + x

    layer = tfdeq.DEQLayer(Outer(), TIGHT)
    layer(_x(), training=True)
    # Two from the inner cell's call, the inner penalty, and one from the weights.
    assert len(layer.losses) == 4


# --- variables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_weights_that_the_cell_assigns_are_kept(mode):
    z, h = keras.Input((UNITS,)), keras.Input((UNITS,))
    dense = keras.layers.Dense(UNITS, kernel_initializer=_small(2.0))
    wrapped = keras.layers.SpectralNormalization(dense, power_iterations=9)
    layer = tfdeq.DEQLayer(keras.Model([z, h], ops.tanh(0.9 * wrapped(z) + h)), TIGHT)
    x = _x()
    layer(x, explicit_steps=1)  # builds it
    assert np.linalg.norm(dense.kernel, 2) > 2
    call = in_mode(lambda x: layer(x, training=True), mode)
    trained = [call(x) for _ in range(3)][-1]
    np.testing.assert_allclose(np.linalg.norm(dense.kernel, 2), 1.0, rtol=1e-4)
    np.testing.assert_allclose(layer(x), trained, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_lora_are_those_of_the_kernel_that_it_makes(mode):
    """LoRA freezes the kernel directly: the layer and TensorFlow's variable remain trainable."""
    z, h = keras.Input((UNITS,)), keras.Input((UNITS,))
    dense = keras.layers.Dense(UNITS, kernel_initializer=_small())
    layer = tfdeq.DEQLayer(keras.Model([z, h], ops.tanh(dense(z) + h)), TIGHT)
    x, factors = _x(), None

    def gradients(x):
        weights = [weight.value for weight in factors or [dense.kernel]]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x, training=True) ** 2)
        return tape.gradient(loss, weights)

    layer(x, explicit_steps=1)  # builds it
    kernel = dense.kernel.numpy()
    dense.enable_lora(2)
    factors = [dense.lora_kernel_a, dense.lora_kernel_b]
    a, b = (
        np.random.default_rng(5).normal(size=weight.shape, scale=0.2).astype("float32")
        for weight in factors
    )
    for weight, value in zip(factors, (a, b), strict=True):
        weight.assign(value)
    found = in_mode(gradients, mode)(x)

    plain = keras.layers.Dense(UNITS)
    layer = tfdeq.DEQLayer(keras.Model([z, h], ops.tanh(plain(z) + h)), TIGHT)
    layer(x, explicit_steps=1)  # builds it
    plain.set_weights([kernel + a @ b, dense.bias.numpy()])
    dense, factors = plain, None
    (of_kernel,) = gradients(x)
    # The solves' tolerance is 1e-6; the gradients are of order 1.
    np.testing.assert_allclose(found[0], of_kernel @ b.T, atol=2e-5)
    np.testing.assert_allclose(found[1], a.T @ of_kernel, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", fast([True], [False, True]))
def test_a_stateful_layer_goes_on_once_a_call(mode, training):
    """It continues from the equilibrium, and keeps a state for each row, so no row may leave the batch."""
    shape = (3, 5, UNITS)
    z, h = keras.Input(batch_shape=shape), keras.Input(batch_shape=shape)
    recurrent = keras.layers.GRU(
        UNITS,
        stateful=True,
        return_sequences=True,
        kernel_initializer=_small(),
        recurrent_initializer=_small(),
    )
    cell = keras.Model([z, h], recurrent(z) + h)
    scale = np.array([1.0, 0.1, 0.01])[:, None, None]
    x = tf.constant(scale * np.random.default_rng(0).normal(size=shape), tf.float32)
    expected = []
    for _ in range(2):
        start, z = recurrent.states[0].numpy(), tf.zeros(shape)
        for _ in range(40):
            recurrent.states[0].assign(start)
            z = cell([z, x], training=training)
        expected.append(z)
    assert np.abs(expected[1] - expected[0]).max() > 0.1
    recurrent.reset_state()
    call = in_mode(lambda x: tfdeq_layer(x, training=training), mode)
    tfdeq_layer = tfdeq.DEQLayer(cell, TIGHT)
    for one in expected:
        np.testing.assert_allclose(call(x), one, atol=1e-5)


# --- noise ------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tfdeq_tests")
class AlwaysNoisyCell(keras.layers.Layer):
    """Monte Carlo dropout, and statistics that advance only in training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = keras.layers.Dropout(0.5, seed=1, dtype=self.dtype_policy)
        self.norm = keras.layers.BatchNormalization(dtype=self.dtype_policy)

    def call(self, z, x, training=None):
        return 0.3 * ops.tanh(self.dropout(z, training=True)) + self.norm(x, training=training)


class UnseededCell(keras.layers.Layer):
    """Draws from Keras's global generator, which is not a variable of the cell."""

    def call(self, z, x):
        return 0.3 * ops.tanh(z) + x + keras.random.normal(ops.shape(x), dtype=x.dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", fast([UnseededCell], [AlwaysNoisyCell, UnseededCell]))
@pytest.mark.parametrize("training", fast([False], [False, True]))
def test_noise_is_new_in_every_call_and_one_in_a_solve(kind, training, mode):
    layer = tfdeq.DEQLayer(kind(), TIGHT)
    # Rows of different difficulty: in inference the batch, and therefore the noise, would shrink.
    x = _x(8) * tf.constant(10.0 ** -np.arange(8)[:, None], tf.float32)
    call = in_mode(lambda x: layer(x, training=training, return_solution=True), mode)
    calls = [call(x) for _ in range(3)]
    for solution in calls:
        assert (solution.residual.numpy() <= 1e-6).all(), "noise that changed would leave 0.1"
    for one, other in itertools.pairwise(calls):
        assert np.abs(one.z - other.z).max() > 1e-2


@pytest.mark.parametrize(
    "kind", [AlwaysNoisyCell, pytest.param(UnseededCell, marks=pytest.mark.slow)]
)
def test_gradient_is_of_the_noise_of_the_solve(kind):
    """When the gradient is computed, the seeds have advanced, but the noise is the same."""
    layer = tfdeq.DEQLayer(kind(dtype="float64"), EXACT, dtype="float64")
    x = _x(dtype="float64")
    layer(x, explicit_steps=1)  # builds it
    state = keras.src.random.seed_generator.global_seed_generator().state
    if kind is AlwaysNoisyCell:
        state = layer.cell.dropout.seed_generator.state
    start = state.numpy()

    def at(x):
        state.assign(start)
        return tf.reduce_sum(tf.sin(layer(x)))

    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = at(x)
    assert np.any(state.numpy() != start)
    along, h = np.random.default_rng(1).normal(size=x.shape), 1e-5
    difference = (at(x + h * along) - at(x - h * along)) / (2 * h)
    np.testing.assert_allclose(np.sum(tape.gradient(loss, x) * along), difference, rtol=1e-7)


@pytest.mark.slow
def test_noise_in_inference_leaves_statistics_alone_and_reaches_predict(tmp_path):
    inputs = keras.Input((UNITS,))
    layer = tfdeq.DEQLayer(AlwaysNoisyCell(), TIGHT)
    model = keras.Model(inputs, layer(inputs))
    x, norm = _x(), layer.cell.norm
    before = [norm.moving_mean.numpy(), norm.moving_variance.numpy()]
    answers = [model.predict(x, verbose=0) for _ in range(3)]
    np.testing.assert_array_equal(norm.moving_mean, before[0])
    np.testing.assert_array_equal(norm.moving_variance, before[1])
    assert np.abs(answers[0] - answers[1]).max() > 1e-2
    assert np.abs(answers[1] - answers[2]).max() > 1e-2
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    assert np.abs(served.serve(x) - served.serve(x)).max() > 1e-2


@pytest.mark.slow
def test_a_cell_without_noise_in_inference_is_exported_without_a_write(tmp_path):
    inputs = keras.Input((UNITS,))
    model = keras.Model(inputs, tfdeq.DEQLayer(NoisyCell(UNITS), TIGHT)(inputs))
    model.compile("sgd", "mse")
    model.fit(_x(), _x(), verbose=0)
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    graph = served.signatures["serving_default"].graph.as_graph_def()
    nodes = [*graph.node, *(node for one in graph.library.function for node in one.node_def)]
    assert not [node.name for node in nodes if "Assign" in node.op]
