"""Tests of tfdeq.adjoints.phantom_gradient: damped applications from the equilibrium."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode, linear, linear_case, tanh_cell

TIGHT = tfdeq.Broyden(max_steps=60, tolerance=1e-13)


def _gradients(adjoint, mode="eager", cell=tanh_cell):
    def run(a, x):
        with tf.GradientTape() as tape:
            tape.watch([a, x])
            z = tfdeq.fixed_point(cell, tf.zeros_like(x), (a, x), TIGHT, adjoint).z
            loss = tf.reduce_sum(z**3)
        return z, tape.gradient(loss, [a, x])

    return in_mode(run, mode)(*map(tf.constant, linear_case(radius=0.6, seed=8)))


def _error(found, exact):
    return max(np.abs(one - other).max() for one, other in zip(found, exact, strict=True))


@pytest.mark.parametrize("damping", [1.0, 0.6])
def test_against_the_series(damping):
    """For a linear cell: u = λ Σ (λ Aᵀ + (1 − λ) I)^i dz."""
    z, (d_a, d_x) = _gradients(tfdeq.PhantomGradient(4, damping), cell=linear)
    a, x = linear_case(radius=0.6, seed=8)
    equilibrium = x @ np.linalg.inv(np.eye(4) - a)
    np.testing.assert_allclose(z, equilibrium, rtol=1e-10)
    power = damping * a.T + (1 - damping) * np.eye(4)
    series = sum(np.linalg.matrix_power(power, i) for i in range(4))
    u = damping * 3 * equilibrium**2 @ series
    np.testing.assert_allclose(d_x, u, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(d_a, equilibrium.T @ u, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("damping", fast([0.7], [1.0, 0.7]))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.slow
def test_error_falls_to_zero_with_the_steps(mode, damping):
    _, exact = _gradients("implicit")
    errors = [
        _error(_gradients(tfdeq.PhantomGradient(steps, damping), mode)[1], exact)
        for steps in (1, 5, 60)
    ]
    assert errors == sorted(errors, reverse=True)
    # ‖0.7 J + 0.3 I‖ <= 0.72, and 0.72^60 = 3e-9.
    assert errors[-1] < 1e-8


def test_one_step_is_jacobian_free():
    phantom, free = _gradients(tfdeq.PhantomGradient(1)), _gradients("jacobian_free")
    for one, other in zip(phantom[1], free[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_solution_and_cost_are_those_of_the_forward_solve():
    a, x = map(tf.constant, linear_case())
    calls = []

    def f(z, a, x):
        calls.append(1)
        return tanh_cell(z, a, x)

    with tf.GradientTape() as tape:
        tape.watch(x)
        solution = tfdeq.fixed_point(f, x, (a, x), TIGHT, tfdeq.PhantomGradient(3))
    implicit = tfdeq.fixed_point(tanh_cell, x, (a, x), TIGHT)
    tf.nest.map_structure(np.testing.assert_array_equal, solution, implicit)
    assert len(calls) == solution.steps.numpy().max()
    calls.clear()
    tape.gradient(solution.z, x)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1; received 0"),
        ({"damping": 1.5}, "damping must be at most 1, the undamped step; received 1.5"),
        ({"damping": 0.0}, "damping must be a finite number greater than 0; received 0.0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        tfdeq.PhantomGradient(**settings)
