"""Tests of tfdeq.solvers.fixed_point_iteration."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, in_mode, linear, linear_case
from tfdeq.iteration import iterate


@pytest.mark.parametrize("damping", [1.0, 0.7, 0.1])
def test_step_is_the_damped_map(damping):
    solver = tfdeq.FixedPointIteration(damping=damping)
    z, f_z = tf.constant([[1.0, -2.0]]), tf.constant([[3.0, 4.0]])
    state, next_z = solver.step(solver.initial_state(z), tf.constant(0), z, f_z)
    assert tf.nest.flatten(state) == []
    np.testing.assert_allclose(next_z, z + damping * (f_z - z), rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("damping", [1.0, 0.7])
def test_converges_at_the_rate_of_the_map(mode, damping):
    """For f(z) = s z + x the error shrinks by the factor 1 − α (1 − s) per step, so the count is known."""
    slope, tolerance = 0.5, 1e-6

    def solve():
        solver = tfdeq.FixedPointIteration(max_steps=100, tolerance=tolerance, damping=damping)
        x = tf.ones([1, 2], tf.float64)
        return iterate(lambda z: slope * z + x, tf.zeros_like(x), solver)

    rate = 1 - damping * (1 - slope)
    z, count = 0.0, 1
    while abs(slope * z + 1 - z) / abs(slope * z + 1) > tolerance:
        z, count = z + damping * (slope * z + 1 - z), count + 1
    solution = in_mode(solve, mode)()
    assert solution.steps.numpy().tolist() == [count]
    np.testing.assert_allclose(solution.z, np.full([1, 2], 2 * (1 - rate ** (count - 1))))


def test_damping_tames_an_overshooting_map():
    a, x = linear_case()
    a = -3.0 * np.eye(4) + 0.1 * a
    for damping, converges in ((1.0, False), (0.3, True)):
        solver = tfdeq.FixedPointIteration(max_steps=60, tolerance=1e-8, damping=damping)
        solution = iterate(lambda z: linear(z, a, x), tf.zeros_like(x), solver)
        assert solution.converged.numpy().tolist() == [converges] * 3


@pytest.mark.parametrize("damping", [0.0, -0.5, 1.5, float("nan")])
def test_damping_out_of_range(damping):
    with pytest.raises(ValueError, match=f"damping must be .*received {damping}"):
        tfdeq.FixedPointIteration(damping=damping)
