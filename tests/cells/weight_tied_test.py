"""Tests of tfdeq.cells.weight_tied: equilibrium and gradient are those of the stack."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tfdeq
from tests.support.cases import MODES, exact_solvers, fast, in_mode
from tfdeq.cells import weight_tied

PLAIN = tfdeq.FixedPointIteration(max_steps=20, tolerance=1e-6)
EXACT = tfdeq.FixedPointIteration(max_steps=20, tolerance=1e-14)

LAYERS = {
    "dense": lambda units: keras.layers.Dense(units, "tanh"),
    "norm": lambda units: keras.layers.LayerNormalization(),
    "convolution": lambda units: keras.layers.Conv1D(units, 3, padding="same"),
    "dilated": lambda units: keras.layers.Conv1D(units, 2, padding="causal", dilation_rate=2),
    "relu": lambda units: keras.layers.Activation("relu"),
    "softmax": lambda units: keras.layers.Softmax(),
}


def _floats(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def _stack(dtype="float32"):
    """Five layers of different output shapes, on [B, 6, 2]."""
    return [
        keras.layers.Conv1D(4, 3, activation="relu", dtype=dtype),
        keras.layers.LayerNormalization(dtype=dtype),
        keras.layers.Flatten(dtype=dtype),
        keras.layers.Dense(7, "tanh", dtype=dtype),
        keras.layers.Dense(3, dtype=dtype),
    ]


def _deq(layers, solver=PLAIN, dtype="float32", **settings):
    return tfdeq.DEQLayer(weight_tied(layers, dtype=dtype), solver, dtype=dtype, **settings)


def _outputs(layers, x, **kwargs):
    outputs = []
    for layer in layers:
        x = layer(x, **kwargs)
        outputs.append(x)
    return outputs


def _assert_close(one, other, tolerance):
    for left, right in zip(one, other, strict=True):
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


# --- the equilibrium --------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    kinds=st.lists(
        st.tuples(st.sampled_from(sorted(LAYERS)), st.integers(1, 6)), min_size=1, max_size=7
    ),
    seed=st.integers(0, 10**6),
)
@pytest.mark.slow
def test_any_stack_is_the_equilibrium_after_as_many_evaluations_as_layers(kinds, seed):
    keras.utils.set_random_seed(seed)
    layers = [LAYERS[kind](units) for kind, units in kinds]
    x = tf.constant(_floats(3, 5, 2, seed=seed))
    deq = _deq(layers, tfdeq.FixedPointIteration(20, 1e-9))
    solution = deq(x, return_solution=True)
    _assert_close(solution.z, _outputs(layers, x), 2e-6)
    # A layer with constant output (a norm or softmax of one unit) may be exact earlier.
    assert (solution.steps.numpy() <= len(layers) + 1).all()
    assert solution.converged.numpy().all()
    _assert_close(deq(x, explicit_steps=len(layers)), solution.z, 2e-6)


@pytest.mark.parametrize("mode", MODES)
def test_plain_iteration_takes_one_evaluation_a_layer_and_one_to_see_it(mode):
    layers, x = _stack(), tf.constant(_floats(4, 6, 2))
    deq = _deq(layers)
    deq(x)
    expected = _outputs(layers, x)
    solution = in_mode(lambda x: deq(x, return_solution=True), mode)(x)
    assert solution.steps.numpy().tolist() == [6] * 4
    assert solution.residual.numpy().max() <= 1e-7
    _assert_close(solution.z, expected, 1e-6)
    start = [5 * _floats(*z.shape, seed=1) for z in expected]
    from_anywhere = in_mode(lambda x: deq(x, z0=tuple(start), explicit_steps=5), mode)(x)
    _assert_close(from_anywhere, expected, 1e-6)
    # One application less gives the outputs of all layers except the last.
    before = deq(x, z0=tuple(start), explicit_steps=4)
    _assert_close(before[:4], expected[:4], 1e-6)
    assert np.abs(before[4] - expected[4]).max() > 0.1


# GMRES is for affine maps.
@pytest.mark.parametrize(
    "name",
    fast(
        ["fixed_point_iteration", "broyden"],
        [name for name in exact_solvers() if "gmres" not in name],
    ),
)
def test_every_solver_gets_there(name):
    layers, x = _stack("float64"), tf.constant(_floats(4, 6, 2, dtype="float64"))
    # Damped plain iteration with a nilpotent Jacobian converges like (1 − α)^k k^L.
    deq = _deq(layers, exact_solvers(max_steps=200, tolerance=1e-11)[name], "float64")
    solution = deq(x, return_solution=True)
    assert solution.converged.numpy().all()
    # The residual, times a Jacobian's powers.
    _assert_close(solution.z, _outputs(layers, x), 1e-8)


# --- the gradient -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "solver", fast([EXACT], [EXACT, tfdeq.Broyden(40, 1e-13)]), ids=["plain", "broyden"]
)
def test_implicit_gradient_is_backpropagation(solver, mode):
    layers, x = _stack("float64"), tf.constant(_floats(4, 6, 2, dtype="float64"))
    deq = _deq(layers, solver, "float64")
    deq(x)
    weights = [variable.value for variable in deq.trainable_variables]

    def gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.sin(3 * function()))
        return tape.gradient(loss, [*weights, x])

    expected = gradients(lambda: _outputs(layers, x)[-1])
    received = in_mode(lambda: gradients(lambda: deq(x)[-1]), mode)()
    _assert_close(received, expected, 1e-11)


def test_backward_solve_is_as_short():
    layers, x = _stack(), tf.constant(_floats(4, 6, 2))
    deq = _deq(layers)
    with tfdeq.SolveScope() as scope:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(deq(x)[-1])
        tape.gradient(loss, x)
    # Starting from the cotangent, in which the last layer's part is already exact.
    assert scope.backward_solutions[deq.name].steps.numpy().tolist() == [5] * 4


# --- layers with noise, statistics, masks -----------------------------------------------------------


NOISE = {
    "noise": (
        lambda: [
            keras.layers.Dense(6, "relu"),
            keras.layers.Dropout(0.4),
            keras.layers.Dense(4),
            keras.layers.GaussianNoise(0.5),
            keras.layers.Dense(2),
        ],
        "implicit",
        2,
    ),
    # Batch statistics mix rows; plain iteration reaches all of them at the same time.
    "statistics": (
        lambda: [
            keras.layers.Dense(6, "relu"),
            keras.layers.BatchNormalization(momentum=0.7),
            keras.layers.Dropout(0.4),
            keras.layers.Dense(2),
        ],
        tfdeq.Implicit(tfdeq.FixedPointIteration(40, 1e-9)),
        3,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NOISE)
def test_training_step_is_that_of_the_stack(name, mode):
    """Masks, batch statistics, gradients, and the new seeds and moving statistics."""
    make, adjoint, changing = NOISE[name]
    # With some weights, a row is zero after the first layer, and its solve ends before it sees the
    # statistics.
    keras.utils.set_random_seed(1)
    layers, x = make(), tf.constant(_floats(16, 3))
    deq = _deq(layers, adjoint=adjoint, convergence_metrics=False)
    deq(x)
    weights = [variable.value for variable in deq.trainable_variables]
    kept = [np.array(variable) for variable in deq.non_trainable_variables]

    def step(function):
        with tf.GradientTape() as tape:
            y = function(x, training=True)[-1]
            loss = tf.reduce_sum(y**2)
        return y, *tape.gradient(loss, weights)

    def in_training(function):
        for variable, value in zip(deq.non_trainable_variables, kept, strict=True):
            variable.assign(value)
        # XLA draws other numbers from the same seed, so both run in the same mode.
        result = in_mode(lambda: step(function), mode)()
        return result, [np.array(variable) for variable in deq.non_trainable_variables]

    expected, advanced = in_training(lambda x, training: _outputs(layers, x, training=training))
    received, state = in_training(deq)
    # Sums over the batch in another order.
    _assert_close(received, expected, 2e-5)
    _assert_close(state, advanced, 1e-6)
    changed = [np.any(one != other) for one, other in zip(kept, advanced, strict=True)]
    assert sum(changed) == changing


def test_masks_go_through_the_layers():
    layers = [
        keras.layers.Embedding(5, 3, mask_zero=True),
        keras.layers.Dropout(0.1),
        keras.layers.LSTM(4, return_sequences=True),
        keras.layers.GlobalAveragePooling1D(),
    ]
    tokens = np.array([[1, 2, 3, 0, 0], [4, 1, 0, 0, 0]], "int32")
    received = _deq(layers)(tokens)[-1]
    np.testing.assert_allclose(received, keras.Sequential(layers)(tokens), atol=1e-6)
    mask = np.array([[True] * 5, [True] * 2 + [False] * 3])
    x = _floats(2, 5, 3)
    received = _deq(layers[2:])(x, mask=mask)[-1]
    expected = layers[3](layers[2](x, mask=mask), mask=mask)
    np.testing.assert_allclose(received, expected, atol=1e-6)
    assert np.abs(received - layers[3](layers[2](x))).max() > 1e-3


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 1e-2), ("float64", 1e-12)])
def test_dtype_policies(policy, tolerance):
    keras.config.set_dtype_policy(policy)
    layers, x = _stack(policy), _floats(4, 6, 2)
    z = tfdeq.DEQLayer(weight_tied(layers), PLAIN)(x)[-1]
    expected = _outputs(layers, x)[-1]
    assert z.dtype == expected.dtype
    np.testing.assert_allclose(
        tf.cast(z, "float64"), tf.cast(expected, "float64"), rtol=tolerance, atol=tolerance
    )


# --- in Keras ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fit_is_that_of_the_stack_and_is_saved(tmp_path):
    x, y = _floats(32, 6, 2), _floats(32, 3, seed=1)
    inputs = keras.Input((6, 2))
    stack = keras.Sequential(_stack())
    model = keras.Model(inputs, _deq(_stack())(inputs)[-1])
    stack(x)
    model.set_weights(stack.get_weights() + model.get_weights()[len(stack.weights) :])
    losses = []
    for one in (stack, model):
        one.compile(keras.optimizers.SGD(0.05), "mse")
        losses.append(one.fit(x, y, 8, epochs=4, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert losses[1][-1] < 0.9 * losses[1][0]
    # The weights differ by rounding, which training may amplify, so the outputs are compared for
    # equal weights.
    trained = model.get_weights()[: len(stack.weights)]
    for one, other in zip(trained, stack.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    stack.set_weights(trained)
    np.testing.assert_allclose(model.predict(x, verbose=0), stack(x), atol=2e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(served.serve(x), model(x), atol=1e-6)


def test_length_that_only_the_running_graph_knows():
    layers = [
        keras.layers.Conv1D(4, 3, strides=2),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        keras.layers.GlobalMaxPooling1D(),
    ]
    inputs = keras.Input((None, 2))
    model = keras.Model(inputs, _deq(layers)(inputs)[-1])
    before = [variable.numpy() for variable in layers[1].variables]
    call = tf.function(model, input_signature=[tf.TensorSpec([None, None, 2])])
    for length in (5, 9):
        x = tf.constant(_floats(3, length, 2))
        np.testing.assert_allclose(call(x), _outputs(layers, x)[-1], atol=1e-6)
    _assert_close(layers[1].variables, before, 0)


def test_first_call_inside_a_function():
    layers, x = _stack(), tf.constant(_floats(4, 6, 2))
    deq = _deq(layers)
    received = tf.function(lambda x: deq(x)[-1])(x)
    np.testing.assert_allclose(received, _outputs(layers, x)[-1], atol=1e-6)


def test_trained_layers_keep_their_weights_and_their_model():
    trained = keras.Sequential([keras.Input((6, 2)), *_stack()])
    x = _floats(4, 6, 2)
    before = trained(x)
    deq = _deq(trained.layers)
    np.testing.assert_allclose(deq(x)[-1], before, atol=1e-6)
    assert trained.layers[0].output.shape == (None, 4, 4), "no second place of use was recorded"
    trained.layers[-1].bias.assign_add(np.ones(3))
    np.testing.assert_allclose(deq(x)[-1], before + 1, atol=1e-6)


def test_a_layer_in_several_places_stays_one():
    tied = keras.layers.Dense(3, "tanh")
    cell = weight_tied([keras.layers.Dense(3), tied, tied, tied])
    deq = tfdeq.DEQLayer(cell, PLAIN)
    x = _floats(2, 4)
    expected = deq(x)[-1]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(deq))
    again(x)
    assert len(again.trainable_variables) == 4
    again.set_weights(deq.get_weights())
    np.testing.assert_allclose(again(x)[-1], expected, atol=1e-6)
    np.testing.assert_allclose(expected, _outputs(cell.layers, x)[-1], atol=1e-6)


# --- what does not hold, and errors -----------------------------------------------------------------


def test_layer_that_is_not_finite_at_zero_needs_a_start():
    layers = [keras.layers.Dense(3, "softmax"), keras.layers.Lambda(keras.ops.log)]
    deq, x = _deq(layers), _floats(2, 4)
    assert set(deq(x, return_solution=True).status.numpy()) == {int(tfdeq.Status.NON_FINITE)}
    ones = tf.ones([2, 3])
    _assert_close(deq(x, z0=(ones, ones)), _outputs(layers, x), 1e-6)


def test_errors_say_which_layer():
    dense = keras.layers.Dense(3)
    with pytest.raises(ValueError, match="pass model.layers"):
        weight_tied(keras.Sequential([dense]))
    with pytest.raises(ValueError, match=r"at least one Keras layer; received \[\]"):
        weight_tied([])
    with pytest.raises(ValueError, match="number 2 is <function"):
        weight_tied([dense, keras.ops.tanh])
    with pytest.raises(ValueError, match="number 1 is the InputLayer 'inputs'. Leave it out"):
        weight_tied([keras.layers.InputLayer((3,), name="inputs"), dense])
    wrong = [keras.layers.Dense(3), keras.layers.Conv1D(2, 3, name="late")]
    with pytest.raises(
        ValueError, match=r"Layer 2 of .*'late', .* the output of layer 1, \(2, 3\)"
    ):
        _deq(wrong)(_floats(2, 4))
    mixing = [keras.layers.Lambda(lambda x: keras.ops.reshape(x, (-1, 2)), name="mixing")]
    with pytest.raises(ValueError, match=r"'mixing', must return .* the batch, 2, .*\(4, 2\)"):
        _deq(mixing)(_floats(2, 4))
    with pytest.raises(ValueError, match="takes one tensor as x"):
        _deq([dense])({"one": _floats(2, 4)})
