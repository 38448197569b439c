"""Tests of tfdeq.solvers.reversible: the recursion, and its reversal."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, Recorder, in_mode, linear_case, tanh_cell
from tfdeq.iteration import iterate


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_iterates_are_those_of_the_coupled_states(mode):
    """Compared alternately with y and z in the paper."""
    a, x = linear_case(radius=0.8)
    record = Recorder(lambda z: tanh_cell(z, a, x))
    solver = tfdeq.Reversible(max_steps=9, tolerance=1e-13, relaxation=0.7)
    in_mode(lambda: iterate(record, tf.constant(x), solver), mode)()
    y = z = x
    for step in range(4):
        np.testing.assert_allclose(record.states[2 * step], z, rtol=1e-12)
        y = 0.3 * y + 0.7 * np.tanh(z @ a + x)
        np.testing.assert_allclose(record.states[2 * step + 1], y, rtol=1e-12)
        z = 0.3 * z + 0.7 * np.tanh(y @ a + x)
    np.testing.assert_allclose(record.states[8], z, rtol=1e-12)


def test_the_recursion_can_be_turned_round():
    a, x = map(tf.constant, linear_case(radius=0.8))
    solver = tfdeq.Reversible()
    before, w = x, x
    state, trace = solver.initial_state(x), [x]
    for k in range(8):
        before = w
        state, w = solver.step(state, tf.constant(k), w, tanh_cell(w, a, x))
        trace.append(w)
    for k in range(8, 1, -1):
        before, w = (w - 0.8 * tanh_cell(before, a, x)) / 0.2, before
        # Rounding grows by up to 1 / (1 − β) = 5 per step: 5^8 1e-16 = 4e-11.
        np.testing.assert_allclose(w, trace[k - 1], rtol=1e-9)
        np.testing.assert_allclose(before, trace[k - 2], rtol=1e-9)


@pytest.mark.parametrize("relaxation", [0.3, 0.8, 0.99])
@pytest.mark.parametrize("mode", MODES)
def test_converges(mode, relaxation):
    a, x = map(tf.constant, linear_case(radius=0.8))
    solver = tfdeq.Reversible(max_steps=300, tolerance=1e-10, relaxation=relaxation)
    solution = in_mode(
        lambda: iterate(lambda z: tanh_cell(z, a, x), tf.zeros_like(x), solver), mode
    )()
    assert solution.converged.numpy().all()
    np.testing.assert_allclose(solution.z, tanh_cell(solution.z, a, x), rtol=1e-8)


@pytest.mark.parametrize(
    ("relaxation", "message"),
    [
        (0.0, "relaxation must be a finite number greater than 0; received 0.0"),
        (1.0, "relaxation must be less than 1; received 1.0. .* use FixedPointIteration"),
    ],
)
def test_settings_are_checked(relaxation, message):
    with pytest.raises(ValueError, match=message):
        tfdeq.Reversible(relaxation=relaxation)
