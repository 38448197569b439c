"""`SolveScope`: settings for the solves inside a model, and their results."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast
from tfdeq import SolveScope, Status
from tfdeq.cell_calls.scope_stack import innermost


class Contraction(keras.layers.Layer):
    """f(z, x) = 0.9 tanh(z) + x, by plain iteration about 0.9ᵏ from its fixed point."""

    def call(self, z, x):
        return 0.9 * keras.ops.tanh(z) + x


def model_of():
    x = keras.Input((3,), name="x")
    solver = tfdeq.FixedPointIteration(max_steps=100, tolerance=1e-2)
    first = tfdeq.DEQLayer(Contraction(), solver, name="first")
    return keras.Model(x, first(x)), first


X = np.float32([[0.1, 0.2, 0.3], [1.0, -1.0, 0.5]])


def test_tolerances_and_budgets_reach_each_sample():
    model, _ = model_of()
    with SolveScope(tolerance=[1e-1, 1e-5]) as scope:
        model(X)
    solution = scope.solutions["first"]
    assert (solution.residual.numpy() <= [1e-1, 1e-5]).all()
    assert solution.steps[1] > solution.steps[0]
    with SolveScope(max_steps=[2, 3], tolerance=1e-6) as scope:
        model(X)
    assert scope.solutions["first"].steps.numpy().tolist() == [2, 3]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_what_is_not_positive_means_the_layers_own(value):
    model, _ = model_of()
    with SolveScope() as own:
        model(X)
    with SolveScope(tolerance=[value, value], max_steps=[0, -3]) as scope:
        model(X)
    expected, found = own.solutions["first"], scope.solutions["first"]
    np.testing.assert_array_equal(found.steps, expected.steps)
    np.testing.assert_array_equal(found.z, expected.z)


def test_a_calls_own_settings_win():
    _, layer = model_of()
    with SolveScope(tolerance=1e-6) as scope:
        layer(X, tolerance=0.5)
    assert scope.solutions["first"].steps.numpy().max() < 10


def test_starts_and_samples_whose_start_is_not_finite():
    model, _ = model_of()
    with SolveScope(tolerance=1e-5) as usual:
        model(X)
    z = usual.solutions["first"].z.numpy()
    z[1, 0] = np.nan
    with SolveScope(tolerance=1e-5, starts={"first": z}) as scope:
        model(X)
    solution = scope.solutions["first"]
    assert solution.steps[0] == 1
    assert solution.steps[1] == usual.solutions["first"].steps[1]
    assert (solution.status.numpy() == Status.CONVERGED).all()


def test_start_of_another_shape_is_refused():
    model, _ = model_of()
    with (
        SolveScope(starts={"first": np.zeros([2, 4], np.float32)}),
        pytest.raises(ValueError, match="z0 must be like the state of 'first'"),
    ):
        model(X)
    assert innermost() is None  # the scope ended with the error


def test_two_calls_of_a_layer_have_names_of_their_own():
    _, layer = model_of()
    with SolveScope() as scope:
        layer(layer(X))
    assert list(scope.solutions) == ["first", "first_1"]


def test_scopes_end_and_nest():
    model, _ = model_of()
    with SolveScope() as outer:
        with SolveScope(max_steps=1) as inner:
            model(X)
        assert not outer.solutions
        model(X)
    model(X)
    assert inner.solutions["first"].steps.numpy().tolist() == [1, 1]
    assert outer.solutions["first"].steps.numpy().max() > 1


def test_a_scope_that_is_entered_again_begins_anew():
    model, layer = model_of()
    start = np.float32([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    scope = SolveScope(max_steps=1, starts={"first": start})
    expected = {"first": start, "first_1": np.zeros([2, 3])}
    for _ in range(2):
        with scope:
            for _ in range(2):
                model(X)
        assert list(scope.solutions) == list(expected)
        for name, z in expected.items():
            np.testing.assert_array_equal(scope.solutions[name].z, z)
    with scope:
        layer(X)
        with scope:
            np.testing.assert_array_equal(layer(X), start)
            assert list(scope.solutions) == ["first"]


def test_backward_solves_go_to_the_entry_of_their_forward_solve():
    layer = tfdeq.DEQLayer(Contraction(), tfdeq.FixedPointIteration(100, 1e-5), name="first")
    x, scope = tf.constant(X), SolveScope()
    with tf.GradientTape() as tape:
        tape.watch(x)
        with scope:
            z = layer(x)
        backward = scope.backward_solutions
        with scope:
            layer(2 * x)
    tape.gradient(z, x)
    assert list(backward) == ["first"]
    assert not scope.backward_solutions


@pytest.mark.parametrize("mode", ["eager", "graph", "unknown", "xla"])
@pytest.mark.parametrize("rows", fast([1], [1, 3]))
def test_starts_of_another_batch_are_refused(mode, rows):
    """A start with one row does not apply to all samples, and one with three rows has one too many."""
    _, layer = model_of()
    start = np.ones([rows, 3], np.float32)

    def by_scope(x, start):
        with SolveScope(starts={"first": start}):
            return layer(x)

    for call in (by_scope, lambda x, start: layer(x, z0=start)):
        if mode != "eager":
            shapes = [None, 3] if mode == "unknown" else None
            call = tf.function(
                call,
                jit_compile=mode == "xla",
                input_signature=[tf.TensorSpec(shapes or one.shape) for one in (X, start)],
            )
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            call(X, start)


def test_settings_that_are_no_integers_or_no_vectors():
    model, _ = model_of()
    with pytest.raises(ValueError, match=r"max_steps must be of integers; received 2\.5"):
        SolveScope(max_steps=2.5)
    with (
        SolveScope(tolerance=[[0.1], [0.2]]),
        pytest.raises(ValueError, match=r"scalar or of shape \[B\].*received shape \(2, 1\)"),
    ):
        model(X)


@pytest.mark.slow
def test_layers_inside_a_cell_keep_their_settings_and_stay_out():
    inner = tfdeq.DEQLayer(Contraction(), "anderson", name="inner")

    class Nested(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def call(self, z, x):
            return 0.01 * self.inner(z) + x

    layer = tfdeq.DEQLayer(Nested(), name="outer")

    @tf.function
    def call(x):
        with SolveScope(tolerance=1e-6) as scope:
            layer(x)
        assert list(scope.solutions) == ["outer"]

    call(tf.constant(X))
    with SolveScope(tolerance=1e-6) as scope:
        layer(tf.constant(X))
    assert list(scope.solutions) == ["outer"]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_graphs_with_tensors_as_settings(jit_compile):
    model, _ = model_of()

    @tf.function(jit_compile=jit_compile)
    def call(x, tolerance):
        with SolveScope(tolerance) as scope:
            y = model(x)
        solution = scope.solutions["first"]
        return y, solution.residual, solution.steps

    tolerance = np.float32([1e-1, 1e-4])
    y, residual, steps = call(tf.constant(X), tf.constant(tolerance))
    assert (residual.numpy() <= tolerance).all()
    with SolveScope(tolerance) as scope:
        expected = model(X)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_array_equal(steps, scope.solutions["first"].steps)


def test_an_absolute_tolerance_below_what_float32_can_hold():
    class Halving(keras.layers.Layer):
        def call(self, z, x):
            return 0.5 * z + x

    solver = tfdeq.FixedPointIteration(max_steps=50, tolerance=1e-30)
    layer = tfdeq.DEQLayer(Halving(dtype="float64"), solver, name="halving", dtype="float64")
    with SolveScope(absolute_tolerance=1e-62) as scope:
        layer(tf.fill([2, 1], tf.constant(1e-60, tf.float64)))
    solution = scope.solutions["halving"]
    # The distance halves, starting from 1e-60; 2⁻⁷ of it is below the tolerance.
    np.testing.assert_array_equal(solution.steps, [8, 8])
    np.testing.assert_array_equal(solution.status, [Status.CONVERGED] * 2)
