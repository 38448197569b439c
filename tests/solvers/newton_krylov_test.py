"""Tests of tfdeq.solvers.newton_krylov."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, in_mode, linear_case, tanh_cell
from tfdeq.iteration import iterate


@pytest.mark.parametrize("mode", MODES)
def test_a_cell_that_does_not_contract(mode):
    a, x = linear_case(batch=4, size=6, radius=2.5, seed=5)

    def solve():
        solver = tfdeq.NewtonKrylov(max_steps=200, tolerance=1e-12)
        return iterate(lambda z: tanh_cell(z, a, x), tf.zeros_like(x), solver)

    solution = in_mode(solve, mode)()
    assert solution.converged.numpy().all()
    np.testing.assert_allclose(tanh_cell(solution.z, a, x), solution.z, rtol=1e-9, atol=1e-10)


def test_convergence_is_fast_at_the_end():
    """With exact linear solves, residuals fall quadratically, so a tolerance of 1e-12 costs one step more."""
    a, x = linear_case(batch=2, size=4, radius=1.2, seed=5)
    steps = []
    for tolerance in (1e-6, 1e-12):
        solver = tfdeq.NewtonKrylov(tolerance=tolerance)
        solution = iterate(lambda z: tanh_cell(z, a, x), tf.zeros_like(x), solver)
        assert solution.converged.numpy().all()
        steps.append(solution.steps.numpy())
    # Two Newton steps of at most four products and one evaluation.
    assert (steps[1] - steps[0] <= 2 * 5).all()


@pytest.mark.parametrize("mode", MODES)
def test_the_step_is_halved_where_it_leads_too_far(mode):
    """z = z − arctan(z): Newton's method diverges from |z| > 1.39 without a line search."""

    def solve():
        solver = tfdeq.NewtonKrylov(tolerance=1e-10)
        start = tf.constant([[3.0], [10.0], [0.5]], tf.float64)
        # ‖f(z)‖ is 0 at the root 0; the shift keeps the relative residual meaningful.
        return iterate(lambda z: z - tf.atan(z - 1.0), start + 1.0, solver)

    solution = in_mode(solve, mode)()
    assert solution.converged.numpy().all()
    np.testing.assert_allclose(solution.z[:, 0], np.ones(3), rtol=1e-9)


def test_a_step_into_nan_is_halved():
    """log of a negative number: the full step leaves the domain, half of it does not."""

    def f(z):
        return z - tf.math.log(z) / 1.0

    solver = tfdeq.NewtonKrylov(tolerance=1e-10)
    solution = iterate(f, tf.constant([[5.0]], tf.float64), solver)
    assert solution.converged.numpy().all()
    np.testing.assert_allclose(solution.z, [[1.0]], rtol=1e-9)


def test_nan_at_the_start_ends_the_sample():
    x = tf.constant([[np.nan], [1.0]], tf.float64)
    solution = iterate(lambda z: 0.5 * tf.cos(z) + x, tf.zeros_like(x), tfdeq.NewtonKrylov())
    assert solution.status.numpy().tolist() == [tfdeq.Status.NON_FINITE, tfdeq.Status.CONVERGED]
    assert solution.steps[0] == 1


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="krylov_steps must be an integer of at least 1"):
        tfdeq.NewtonKrylov(krylov_steps=0)
