"""Tests of the settings of a call: tolerances, budgets, trace, throw, callbacks."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, DenseCell, fast, in_mode, linear, linear_case
from tfdeq import adjoints, solvers


def test_the_tolerance_of_a_call_reaches_the_backward_solve():
    """z = az + x: dz/dx = 1 / (1 - a)."""
    a = tf.constant([[0.6, 0.05], [-0.3, 0.4]], tf.float64)
    x = tf.ones([3, 2], tf.float64)

    def error(**settings):
        solutions = []
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = tfdeq.fixed_point(
                linear, tf.zeros_like(x), (a, x), **settings, backward_callback=solutions.append
            ).z
            loss = tf.reduce_sum(z)
        found = tape.gradient(loss, x)
        expected = np.ones([3, 2]) @ np.linalg.inv(np.eye(2) - a.numpy()).T
        return np.abs(found - expected).max() / np.abs(expected).max(), solutions[0]

    plain = tfdeq.FixedPointIteration(max_steps=30, tolerance=1e-3)
    settings = {"solver": plain, "tolerance": 1e-10, "max_steps": 400}
    followed, solution = error(**settings)
    assert followed < 1e-8
    assert solution.converged.numpy().all()
    assert error(**settings, backward_tolerance=1e-2)[0] > 1e-4
    assert (error(**settings, backward_max_steps=5)[1].steps.numpy() == 5).all()
    # A small forward budget does not apply to the gradient; the adjoint's own solver keeps its
    # settings.
    assert error(solver=plain, max_steps=2)[1].steps.numpy().max() > 2
    assert error(adjoint=tfdeq.Implicit(plain), tolerance=1e-10)[1].residual.numpy().max() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_trace_is_the_residual_of_every_evaluation(mode):
    a, x = map(tf.constant, linear_case(batch=3, radius=0.8, seed=2))
    budget = tf.constant([4, 12, 12])

    def solve(name, **settings):
        return tfdeq.fixed_point(
            linear, tf.zeros_like(x), (a, x), name, tolerance=1e-4, trace=True, **settings
        )

    run = in_mode(lambda: solve("fixed_point_iteration", max_steps=budget, batched_args=[1]), mode)
    solution = run()
    z = tf.zeros_like(x)
    for column in range(12):
        f_z = linear(z, a, x)
        expected = tf.norm(f_z - z, axis=1) / tf.norm(f_z, axis=1)
        made = column < solution.steps.numpy()
        np.testing.assert_allclose(solution.trace[:, column][made], expected[made], rtol=1e-6)
        assert np.isnan(solution.trace[:, column][~made]).all()
        z = f_z
    assert solution.trace.shape == [3, 12]
    for name in ("newton_krylov", "anderson"):
        found = in_mode(lambda name=name: solve(name), mode)()
        np.testing.assert_allclose(np.nanmin(found.trace, axis=1), found.residual, rtol=1e-6)


def test_trace_of_every_rule():
    x = tf.ones([2, 3])
    for name in adjoints.REGISTRY:
        kind = adjoints.get(name).solver_kind
        solver = (kind if kind is not solvers.Solver else tfdeq.Broyden)(max_steps=20)
        solution = tfdeq.fixed_point(
            lambda z, x: 0.5 * z + x, tf.zeros_like(x), (x,), solver, name, trace=True
        )
        last = solution.trace.numpy()[:, int(solution.steps[0]) - 1]
        np.testing.assert_allclose(last, solution.residual, rtol=1e-6)


def test_throw_names_what_has_not_converged():
    x = tf.constant([[1.0], [0.0]])
    solve = lambda x, steps: tfdeq.fixed_point(  # noqa: E731
        lambda z, x: 0.5 * z + x, tf.zeros_like(x), (x,), max_steps=steps, throw=True
    )
    for function in (solve, tf.function(solve, autograph=False)):
        assert function(x, tf.constant(30)).converged.numpy().all()
        with pytest.raises(tf.errors.InvalidArgumentError, match="Not every sample has converged"):
            function(x, tf.constant(1))
    layer = tfdeq.DEQLayer(DenseCell(3))
    with pytest.raises(tf.errors.InvalidArgumentError, match="Not every sample has converged"):
        layer(tf.ones([2, 3]), max_steps=1, throw=True)


def test_callbacks_receive_both_solutions():
    x, seen = tf.ones([2, 3]), []
    solution = tfdeq.fixed_point(
        lambda z, x: 0.5 * z + x, tf.zeros_like(x), (x,), callback=seen.append
    )
    assert seen == [solution] or seen[0] is solution


@pytest.mark.parametrize(
    "name", fast(["tolerance"], ["tolerance", "max_steps", "patience", "absolute_tolerance"])
)
def test_limits_of_another_number_of_rows_are_refused(name):
    x = tf.ones([3, 2])
    values = {"tolerance": [1e-3], "max_steps": [5], "patience": [5], "absolute_tolerance": [1e-3]}

    def solve(x, value):
        f = lambda z, x: 0.5 * z + x  # noqa: E731
        return tfdeq.fixed_point(f, tf.zeros_like(x), (x,), **{name: value}).z

    value = tf.constant(values[name])
    for given in (value, tf.repeat(value, 2)):
        with pytest.raises(ValueError, match=f"{name} must be a scalar or of shape"):
            solve(x, given)
        unknown = [tf.TensorSpec([None, 2]), tf.TensorSpec([None], given.dtype)]
        function = tf.function(solve, input_signature=unknown, autograph=False)
        with pytest.raises(tf.errors.InvalidArgumentError, match="a row for each sample"):
            function(x, given)
