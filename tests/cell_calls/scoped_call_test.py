"""`SolveScope` around compiled functions: read at each call, no matter when and where they were traced."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast
from tfdeq import SolveScope

X = np.float32([[0.1, 0.2, 0.3], [1.0, -1.0, 0.5], [-0.4, 0.3, 2.0], [0.0, 0.7, -0.2]])


class Half(keras.layers.Layer):
    """f(z, x) = z / 2 + x, whose fixed point is 2 x."""

    def call(self, z, x):
        return z / 2 + x


def after(steps, start=0.0):
    """Returns the result of plain iteration after `steps` evaluations: the last evaluated point."""
    z = np.zeros_like(X) + start
    for _ in range(steps - 1):
        z = z / 2 + X
    return z


def model_with(compiled):
    """Returns a model with one equilibrium; compiled: how its predict, evaluate and fit are compiled."""
    x = keras.Input((3,))
    solver = tfdeq.FixedPointIteration(max_steps=100, tolerance=1e-6)
    model = keras.Model(x, tfdeq.DEQLayer(Half(), solver, name="half")(x))
    model.compile(loss="mse", **compiled)
    return model


WAYS = {
    "graph": {"jit_compile": False},
    "xla": {"jit_compile": True},
    "eager": {"run_eagerly": True},
    "several_steps": {"jit_compile": False, "steps_per_execution": 3},
    "several_steps_xla": {"jit_compile": True, "steps_per_execution": 2},
}


def predict(model, x=X, **settings):
    return model.predict(x, verbose=0, **settings)


@pytest.mark.parametrize("way", fast(["graph"], WAYS))
@pytest.mark.parametrize("first_inside", fast([True], [False, True]))
def test_predict_before_inside_and_after(way, first_inside):
    model = model_with(WAYS[way])
    if not first_inside:
        np.testing.assert_allclose(predict(model), 2 * X, atol=1e-5)
    for steps in (1, 3, 2):
        with SolveScope(max_steps=steps) as scope:
            np.testing.assert_allclose(predict(model), after(steps), atol=1e-6)
        assert bool(scope.solutions) == (way == "eager")
    with SolveScope(tolerance=0.2):
        np.testing.assert_allclose(predict(model), after(3), atol=1e-6)
    np.testing.assert_allclose(predict(model), 2 * X, atol=1e-5)


def test_several_batches_each_take_scalars():
    model = model_with(WAYS["graph"])
    with SolveScope(max_steps=2):
        np.testing.assert_allclose(predict(model, batch_size=3), after(2), atol=1e-6)


@pytest.mark.parametrize("way", fast(["graph"], ["graph", "xla", "eager"]))
def test_settings_of_each_sample(way):
    model = model_with(WAYS[way])
    with SolveScope(max_steps=[1, 2, 0, 3]):
        found = predict(model)
    expected = np.stack([after(1)[0], after(2)[1], 2 * X[2], after(3)[3]])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with SolveScope(tolerance=[0.2, np.nan, 0.2, -1.0]):
        found = predict(model)
    expected = np.stack([after(3)[0], 2 * X[1], after(3)[2], 2 * X[3]])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "way"),
    fast([(1, "graph"), (3, "eager")], itertools.product([1, 3, 5], ["graph", "xla", "eager"])),
)
def test_settings_and_starts_of_another_batch_are_refused(rows, way):
    model = model_with(WAYS[way])
    refused = (ValueError, tf.errors.InvalidArgumentError)
    for settings in (
        {"max_steps": [2] * rows},
        {"tolerance": [0.1] * rows},
        {"starts": {"half": np.ones([rows, 3], np.float32)}},
    ):
        with SolveScope(**settings), pytest.raises(refused):
            predict(model)
    np.testing.assert_allclose(predict(model), 2 * X, atol=1e-5)


@pytest.mark.parametrize("way", fast(["graph"], ["graph", "xla", "eager"]))
def test_starts(way):
    model = model_with(WAYS[way])
    start = np.full_like(X, 3.0)
    start[1, 2] = np.nan
    expected = after(2, 3.0)
    expected[1] = after(2)[1]
    with SolveScope(max_steps=2, starts={"half": start}):
        np.testing.assert_allclose(predict(model), expected, atol=1e-6)
    with SolveScope(max_steps=2):
        np.testing.assert_allclose(predict(model), after(2), atol=1e-6)
    with (
        SolveScope(starts={"half": np.zeros([4, 2], np.float32)}),
        pytest.raises(ValueError, match="z0 must be like the state of 'half'"),
    ):
        predict(model)


def test_a_start_that_is_not_given_is_not_looked_at():
    """XLA computes what is constant when it compiles, entry by entry: seconds for a large state."""
    model = model_with(WAYS["xla"])
    function = tf.function(model).get_concrete_function(tf.TensorSpec([4, 3]))
    looked_at = [op for op in function.graph.get_operations() if op.type == "IsFinite"]
    assert looked_at
    assert not any("Pad" in op.inputs[0].op.type for op in looked_at)


def test_scopes_in_one_another_and_entered_again():
    model = model_with(WAYS["graph"])
    outer = SolveScope(max_steps=2)
    with outer:
        with SolveScope(max_steps=1):
            np.testing.assert_allclose(predict(model), after(1), atol=1e-6)
        with SolveScope():  # the layers' own
            np.testing.assert_allclose(predict(model), 2 * X, atol=1e-5)
        with outer:
            np.testing.assert_allclose(predict(model), after(2), atol=1e-6)
        np.testing.assert_allclose(predict(model), after(2), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["graph", "xla", "several_steps"])
def test_evaluate_test_on_batch_and_metrics(way):
    model = model_with(WAYS[way])
    y = np.zeros_like(X)
    usual = model.evaluate(X, y, verbose=0, return_dict=True)
    with SolveScope(max_steps=3):
        inside = model.evaluate(X, y, verbose=0, return_dict=True)
        batch = model.test_on_batch(X, y, return_dict=True)
    again = model.evaluate(X, y, verbose=0, return_dict=True)
    assert inside["half_steps"] == 3
    assert inside["half_converged"] == 0
    assert inside["loss"] == pytest.approx(np.mean(after(3) ** 2), rel=1e-5)
    assert batch["loss"] == pytest.approx(np.mean(after(3) ** 2), rel=1e-5)
    assert usual["half_converged"] == 1
    assert again == pytest.approx(usual)


@pytest.mark.parametrize("way", fast(["graph"], ["graph", "xla", "eager", "several_steps"]))
def test_fit_and_train_on_batch(way):
    model = model_with({"optimizer": "sgd", **WAYS[way]})
    y = np.zeros_like(X)

    def fit():
        return {k: v[0] for k, v in model.fit(X, y, verbose=0).history.items()}

    assert fit()["half_steps"] > 10
    with SolveScope(max_steps=4):
        inside = fit()
        model.train_on_batch(X, y)
    assert inside["half_steps"] == 4
    assert inside["loss"] == pytest.approx(np.mean(after(4) ** 2), rel=1e-5)
    assert fit()["half_steps"] > 10


def test_a_training_budget_is_the_layers_own():
    solver = tfdeq.FixedPointIteration(max_steps=100, tolerance=1e-6)
    layer = tfdeq.DEQLayer(Half(), solver, name="half", training_max_steps=3)
    compiled = tf.function(lambda x: layer(x, training=True))
    for call in (lambda x: layer(x, training=True), compiled):
        np.testing.assert_allclose(call(X), after(3), atol=1e-6)
        with SolveScope(max_steps=0):
            np.testing.assert_allclose(call(X), after(3), atol=1e-6)
        with SolveScope(max_steps=5):
            np.testing.assert_allclose(call(X), after(5), atol=1e-6)


@pytest.mark.parametrize("jit_compile", fast([False], [False, True]))
def test_functions_of_ones_own_are_traced_once(jit_compile):
    model, traces = model_with({}), []

    @tf.function(jit_compile=jit_compile)
    def inner(x):
        traces.append("inner")
        return model(x)

    @tf.function
    def looping(x):
        traces.append("outer")
        y = tf.zeros_like(x)
        for _ in tf.range(2):
            y += inner(x) if tf.reduce_all(tf.math.is_finite(x)) else x
        return y / 2

    for function in (inner, looping):
        for steps in (2, 1, 3):
            with SolveScope(max_steps=steps):
                np.testing.assert_allclose(function(X), after(steps), atol=1e-6)
            np.testing.assert_allclose(function(X), 2 * X, atol=1e-5)
    assert traces == ["inner", "outer"]


@pytest.mark.parametrize("jit_compile", fast([False], [False, True]))
def test_a_scope_inside_a_function_comes_before_one_around_it(jit_compile):
    model = model_with({})
    inner = tf.function(lambda x: model(x))

    @tf.function(jit_compile=jit_compile)
    def outer(x, steps):
        with SolveScope(max_steps=steps) as scope:
            called = inner(x)
        assert not scope.solutions  # of another graph
        with SolveScope(max_steps=1) as scope:
            own = model(x)
        return called, inner(x), own, scope.solutions["half"].steps

    for steps in (2, 3):
        with SolveScope(max_steps=4):
            called, around, own, counted = outer(tf.constant(X), tf.constant(steps))
        np.testing.assert_allclose(called, after(steps), atol=1e-6)
        np.testing.assert_allclose(around, after(4), atol=1e-6)
        np.testing.assert_allclose(own, after(1), atol=1e-6)
        assert counted.numpy().tolist() == [1] * 4
    np.testing.assert_allclose(outer(tf.constant(X), tf.constant(1))[1], 2 * X, atol=1e-5)


def test_gradients_through_a_function_that_asks():
    weights = tf.Variable(np.float64(0.5))
    layer = tfdeq.DEQLayer(Half(), tfdeq.FixedPointIteration(200, 1e-12), dtype="float64")
    function = tf.function(lambda x: layer(x * weights))
    for steps, expected in ((0, 2.0), (200, 2.0)):
        with SolveScope(max_steps=steps), tf.GradientTape() as tape:
            loss = tf.reduce_sum(function(tf.constant(X, tf.float64)))
        gradient = tape.gradient(loss, weights)
        assert float(gradient) == pytest.approx(expected * X.sum(), abs=1e-8)


@pytest.mark.parametrize("jit_compile", fast([False], [None, False, True]))
def test_cells_that_solve_keep_their_settings(jit_compile):
    inner = tfdeq.DEQLayer(Half(), tfdeq.FixedPointIteration(100, 1e-6), name="inner")
    solve = tf.function(lambda x: inner(x))

    class Nested(keras.layers.Layer):
        def call(self, z, x):
            return 0.1 * solve(z) + x

    call = layer = tfdeq.DEQLayer(Nested(), tfdeq.FixedPointIteration(100, 1e-6))
    if jit_compile is not None:
        call = tf.function(lambda x: layer(x), jit_compile=jit_compile)
    with SolveScope(max_steps=2) as scope:
        np.testing.assert_allclose(call(X), X, atol=1e-5)
    with SolveScope(
        max_steps=3
    ):  # the second image is x + 0.1 · 2 x if the inner solve has converged
        np.testing.assert_allclose(call(X), 1.2 * X, atol=1e-5)
    assert "inner" not in scope.solutions
    if not jit_compile:
        with SolveScope(max_steps=1):  # called alone, it is like any other layer
            np.testing.assert_allclose(solve(X), 0 * X, atol=1e-6)


def test_building_a_model_inside_leaves_nothing():
    with SolveScope(max_steps=1) as scope:
        model = model_with(WAYS["graph"])
    assert not scope.solutions
    np.testing.assert_allclose(predict(model), 2 * X, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("when", fast(["inside"], ["before", "inside", "after"]))
def test_exported_models_have_no_scope(when, tmp_path):
    model = model_with(WAYS["graph"])
    if when != "before":
        with SolveScope(max_steps=1):
            predict(model)
            if when == "inside":
                model.export(tmp_path / "exported", verbose=False)
    if when != "inside":
        model.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(loaded.serve(tf.constant(X)), 2 * X, atol=1e-5)
    with SolveScope(max_steps=1):
        signature = loaded.signatures["serving_default"]
        (found,) = signature(tf.constant(X)).values()
        np.testing.assert_allclose(found, 2 * X, atol=1e-5)
        np.testing.assert_allclose(loaded.serve(tf.constant(X)), 2 * X, atol=1e-5)
        np.testing.assert_allclose(predict(model), after(1), atol=1e-6)


def test_a_saved_function_has_no_scope(tmp_path):
    module = tf.Module()
    module.model = model_with({})
    module.call = tf.function(
        lambda x: module.model(x), input_signature=[tf.TensorSpec([None, 3], tf.float32)]
    )
    with SolveScope(max_steps=1):
        np.testing.assert_allclose(module.call(X), after(1), atol=1e-6)
        # Without gradients of all orders, which take most of a minute to write.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, str(tmp_path), signatures=module.call, options=options)
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_allclose(loaded.call(X), 2 * X, atol=1e-5)
    with SolveScope(max_steps=2):
        np.testing.assert_allclose(module.call(X), after(2), atol=1e-6)


@pytest.mark.parametrize("jit_compile", fast([False], [False, True]))
def test_a_trace_of_residuals(jit_compile):
    solver = tfdeq.FixedPointIteration(max_steps=5, tolerance=1e-6)
    layer = tfdeq.DEQLayer(Half(), solver, name="half")
    call = tf.function(
        lambda x: layer(x, return_solution=True, trace=True), jit_compile=jit_compile
    )
    with SolveScope(max_steps=2, tolerance=0.2):
        solution = call(X)
    # XLA must know the length of a trace, so there the budget is the layer's own.
    assert solution.trace.shape == (4, 5 if jit_compile else 2)
    assert solution.steps.numpy().tolist() == [3 if jit_compile else 2] * 4


@pytest.mark.slow
def test_half_precision_and_saved_keras_files(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = model_with(WAYS["graph"])
    predict(model)
    model.save(tmp_path / "model.keras")
    for one in (
        model,
        keras.models.load_model(tmp_path / "model.keras", custom_objects={"Half": Half}),
    ):
        with SolveScope(max_steps=2):
            np.testing.assert_allclose(predict(one), after(2), atol=2e-3)
