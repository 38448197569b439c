"""Tests of tfdeq.solvers.gmres: affine maps, and the adjoint system."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, Recorder, fast, in_mode, linear, linear_case, tanh_cell
from tfdeq.iteration import iterate


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("radius", fast([3.0], [0.5, 3.0]))
def test_affine_map_needs_as_many_products_as_dimensions(mode, radius):
    """D products, and two evaluations of f: at the start and at the solution."""
    a, x = linear_case(batch=4, size=7, radius=radius, seed=3)

    def solve():
        solver = tfdeq.GMRES(tolerance=1e-9)
        return iterate(lambda z: linear(z, a, x), tf.zeros_like(x), solver)

    solution = in_mode(solve, mode)()
    assert solution.converged.numpy().all()
    assert (solution.steps.numpy() <= 7 + 2).all()
    expected = np.linalg.solve((np.eye(7) - a).T, x.T).T
    np.testing.assert_allclose(solution.z, expected, rtol=1e-7)


def test_restarts_where_the_space_is_small():
    a, x = linear_case(batch=2, size=9, radius=0.9, seed=3)
    solver = tfdeq.GMRES(max_steps=200, tolerance=1e-10, krylov_steps=3)
    solution = iterate(lambda z: linear(z, a, x), tf.zeros_like(x), solver)
    assert solution.converged.numpy().all()
    assert (solution.steps.numpy() > 9 + 2).all()


@pytest.mark.parametrize("budget", [1, 2, 5, 6])
def test_the_budget_is_never_exceeded(budget):
    a, x = linear_case(batch=3, size=9, radius=0.9, seed=3)
    f = Recorder(lambda z: linear(z, a, x))
    solver = tfdeq.GMRES(max_steps=budget, tolerance=1e-12, krylov_steps=3)
    solution = iterate(f, tf.zeros_like(x), solver)
    assert (solution.steps.numpy() <= budget).all()
    assert (solution.status.numpy() == int(tfdeq.Status.MAX_STEPS)).all()


@pytest.mark.slow  # conformance_test.py has it for a linear cell
@pytest.mark.parametrize("mode", MODES)
def test_as_the_backward_solver(mode):
    """The adjoint system takes its products from one linearisation; the gradient is exact."""
    a, x = map(tf.constant, linear_case(batch=3, size=5, radius=0.9, seed=4))
    forward = tfdeq.Broyden(max_steps=60, tolerance=1e-13)
    tight = tfdeq.GMRES(max_steps=60, tolerance=1e-13)
    backward = []

    def solve(adjoint):
        with tf.GradientTape() as tape:
            tape.watch([a, x])
            solution = tfdeq.fixed_point(
                tanh_cell, tf.zeros_like(x), (a, x), forward, adjoint,
                backward_callback=backward.append,
            )  # fmt: skip
            loss = tf.reduce_sum(solution.z**2)
        return tape.gradient(loss, [a, x]), backward.pop().steps

    received, steps = in_mode(lambda: solve(tfdeq.Implicit(tight)), mode)()
    expected, _ = in_mode(lambda: solve(tfdeq.Implicit(forward)), mode)()
    for one, other in zip(received, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)
    assert (steps.numpy() <= 2 * (5 + 2)).all()


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="krylov_steps must be an integer of at least 1"):
        tfdeq.GMRES(krylov_steps=0)
