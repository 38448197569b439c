"""Tests of tfdeq.adjoints.implicit: derivatives of any order, and arguments without a gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode, linear, linear_case, tanh_cell

TIGHT = tfdeq.Broyden(max_steps=60, tolerance=1e-13)


def _towers(solver, t):
    """Returns φ(t) and its first three derivatives, where both A and x of a tanh cell depend on t."""
    a, x = map(tf.constant, linear_case(batch=2, size=3, radius=0.6, seed=4))
    b, y = map(tf.constant, linear_case(batch=2, size=3, radius=0.6, seed=5))

    def value(t):
        f = lambda z, t: tanh_cell(z, a + t * b, x + t * y)  # noqa: E731
        z = tfdeq.fixed_point(f, tf.zeros_like(x), (t,), solver).z
        return tf.reduce_sum(z**2 + z)

    def derivative(function):
        def differentiated(t):
            with tf.GradientTape() as tape:
                tape.watch(t)
                result = function(t)
            return tape.gradient(result, t)

        return differentiated

    first = derivative(value)
    second = derivative(first)
    third = derivative(second)
    return value(t), first(t), second(t), third(t)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.slow
def test_three_derivatives_against_finite_differences(mode):
    towers = in_mode(lambda t: _towers(TIGHT, t), mode)
    h = 1e-3
    points = [towers(tf.constant(step * h, tf.float64)) for step in (-2, -1, 0, 1, 2)]
    for order in (1, 2, 3):
        low2, low1, _, high1, high2 = (float(point[order - 1]) for point in points)
        # Fourth order: the error is h^4 φ⁗⁺ / 30, about 1e-11 here; rounding is 1e-13 / h.
        difference = (8 * (high1 - low1) - (high2 - low2)) / (12 * h)
        np.testing.assert_allclose(points[2][order], difference, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "backward", fast([None, "broyden"], [None, "anderson", "fixed_point_iteration", "broyden"])
)
def test_backward_solver_may_be_another(backward):
    a, x = map(tf.constant, linear_case())
    if backward:
        backward = tfdeq.solvers.get(backward, max_steps=100, tolerance=1e-13)
    with tf.GradientTape() as tape:
        tape.watch([a, x])
        z = tfdeq.fixed_point(linear, x, (a, x), TIGHT, tfdeq.Implicit(backward)).z
    d_a, d_x = tape.gradient(z, [a, x])
    inverse = np.linalg.inv(np.eye(4) - a.numpy())
    u = np.ones([3, 4]) @ inverse.T
    np.testing.assert_allclose(d_x, u, rtol=1e-10)
    np.testing.assert_allclose(d_a, z.numpy().T @ u, rtol=1e-10)


def test_backward_solver_has_a_tolerance_of_its_own():
    """A loose backward tolerance gives an inexact gradient of an exact equilibrium, which is reported."""
    a, x = map(tf.constant, linear_case())
    solutions = []
    loose = tfdeq.FixedPointIteration(max_steps=2, tolerance=1e-9)
    with tf.GradientTape() as tape:
        tape.watch(x)
        solution = tfdeq.fixed_point(
            linear, x, (a, x), TIGHT, tfdeq.Implicit(loose), backward_callback=solutions.append
        )
    gradient = tape.gradient(solution.z, x)
    assert solution.converged.numpy().all()
    (backward,) = solutions
    assert backward.status.numpy().tolist() == [tfdeq.Status.MAX_STEPS] * 3
    assert backward.steps.numpy().tolist() == [2] * 3
    # Two products from u = dz; the second's result has three terms of the series.
    ones = np.ones([3, 4])
    transposed = a.numpy().T
    expected = ones + ones @ transposed + ones @ transposed @ transposed
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_the_callback_sees_the_first_order_solve_alone():
    a, x = map(tf.constant, linear_case())
    solutions = []
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            z = tfdeq.fixed_point(tanh_cell, x, (a, x), TIGHT, backward_callback=solutions.append).z
        assert not solutions
        gradient = inner.gradient(z, x)
        assert len(solutions) == 1
    assert outer.gradient(gradient, x) is not None
    # The second derivative differentiates z itself once more, with only one first-order solve.
    assert len(solutions) <= 2
    assert all(solution.converged.numpy().all() for solution in solutions)


def test_backward_costs_one_vector_jacobian_product_a_step():
    """f is evaluated once to linearise and once for the arguments, for any number of steps."""
    a, x = map(tf.constant, linear_case(radius=0.9))
    calls = []

    def f(z, a, x):
        calls.append(1)
        return tanh_cell(z, a, x)

    backward = []
    with tf.GradientTape() as tape:
        tape.watch(a)
        solution = tfdeq.fixed_point(f, x, (a, x), TIGHT, backward_callback=backward.append)
    calls.clear()
    tape.gradient(solution.z, a)
    assert backward[0].steps.numpy().max() > 3
    assert len(calls) == 2


def test_what_gets_no_gradient():
    a, x = map(tf.constant, linear_case())
    z0 = tf.ones_like(x)
    unused = tf.ones([2], tf.float64)
    count = tf.constant([1, 2, 3])

    def f(z, a, x, unused, count):
        return linear(z, a, x * tf.cast(count, x.dtype)[:, None])

    with tf.GradientTape(persistent=True) as tape:
        tape.watch([z0, x, unused])
        solution = tfdeq.fixed_point(f, z0, (a, x, unused, count), TIGHT)
    assert tape.gradient(solution.z, z0) is None
    assert tape.gradient(solution.residual, x) is None
    np.testing.assert_array_equal(tape.gradient(solution.z, unused), np.zeros(2))
    inverse = np.linalg.inv(np.eye(4) - a.numpy())
    expected = np.array([[1.0], [2.0], [3.0]]) * (np.ones([3, 4]) @ inverse.T)
    np.testing.assert_allclose(tape.gradient(solution.z, x), expected, rtol=1e-10)


def test_config_round_trip():
    for adjoint in (tfdeq.Implicit(), tfdeq.Implicit(tfdeq.Anderson(memory=3, tolerance=1e-2))):
        config = keras.saving.serialize_keras_object(adjoint)
        assert keras.saving.deserialize_keras_object(config) == adjoint


def test_solver_by_name_is_checked_at_construction():
    assert tfdeq.Implicit("anderson").solver == tfdeq.Anderson()
    with pytest.raises(ValueError, match="Unknown solver 'gradient_descent'. Known solvers"):
        tfdeq.Implicit("gradient_descent")


@pytest.mark.parametrize("scale", fast([1e-22], [1.0, 1e-22, 1e20]))
def test_a_gradient_of_any_size_is_solved_alike(scale):
    """z = 0.9 z + x: dz/dx = 10 for any size of the loss; squares of 1e-22 underflow in float32."""
    x = tf.constant([[1.0, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        solver = tfdeq.FixedPointIteration(max_steps=300, tolerance=1e-6)
        loss = scale * tf.reduce_sum(
            tfdeq.fixed_point(lambda z, x: 0.9 * z + x, tf.zeros_like(x), (x,), solver).z
        )
    # The solves' tolerance, over 1 − 0.9.
    np.testing.assert_allclose(tape.gradient(loss, x) / scale, 10.0, rtol=3e-5)


def _mixing_cell(z, a, x):
    """A cell that mixes samples by their mean, as BatchNormalization does in training."""
    return 0.5 * tf.tanh(z @ a + tf.reduce_mean(z, axis=0, keepdims=True)) + x


@pytest.mark.parametrize("mode", MODES)
def test_a_cell_that_mixes_samples(mode):
    """Compared with the dense linear system over the whole batch, for cotangents of very different sizes."""
    random = np.random.default_rng(4)
    a = tf.constant(random.normal(size=(3, 3)) * 0.3)
    x = tf.constant(random.normal(size=(4, 3)))
    d_z = random.normal(size=(4, 3)) * np.array([[1e-6], [1.0], [1e4], [0.0]])
    solver = tfdeq.FixedPointIteration(400, 1e-13)

    def gradients(a, x):
        with tf.GradientTape() as tape:
            tape.watch([a, x])
            z = tfdeq.fixed_point(_mixing_cell, tf.zeros_like(x), (a, x), solver).z
            loss = tf.reduce_sum(z * d_z)
        return (z, *tape.gradient(loss, [a, x]))

    z, _, d_x = in_mode(gradients, mode)(a, x)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        output = _mixing_cell(z, a, x)
    jacobian = tape.jacobian(output, z, experimental_use_pfor=False).numpy().reshape(12, 12)
    expected = np.linalg.solve(np.eye(12) - jacobian.T, d_z.reshape(12)).reshape(4, 3)
    # u is the gradient with respect to x, which is added. The tolerance applies to each sample's
    # own residual.
    np.testing.assert_allclose(d_x, expected, rtol=1e-9)
