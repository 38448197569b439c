"""Tests of tfdeq.solvers.limited_memory_broyden, compared with updates stored as matrices."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, in_mode, linear, linear_case
from tfdeq.iteration import iterate

SIZE = 6


def _map(z):
    a, x = linear_case(batch=1, size=SIZE, radius=0.9, seed=7)
    return np.tanh(z @ a + x[0]) + 0.1 * np.roll(z, 1) ** 2


def _run(solver, calls):
    iterates, states = [np.zeros(SIZE)], []
    state = solver.initial_state(tf.zeros([1, SIZE], tf.float64))
    for k in range(calls):
        z = iterates[-1][None]
        state, z = solver.step(state, tf.constant(k), tf.constant(z), tf.constant(_map(z[0])[None]))
        iterates.append(z.numpy()[0])
        states.append(state)
    return iterates, states


def _dense(calls, memory, damping):
    """Makes the same updates with matrices; returns iterates, and H at each call."""
    factors, inverses = [], []
    z = np.zeros(SIZE)
    g = _map(z) - z
    iterates = [z]
    s = y = None
    for _ in range(calls):
        if s is not None:
            factors = factors[-(memory - 1) :] if memory > 1 else []
            h = _product(factors)
            factors.append(np.eye(SIZE) + np.outer((s - h @ y) / (s @ h @ y), s))
        h = _product(factors)
        inverses.append(h)
        s = -damping * h @ g
        z = z + s
        y = _map(z) - z - g
        g = g + y
        iterates.append(z)
    return iterates, inverses


def _product(factors):
    h = -np.eye(SIZE)
    for factor in factors:
        h = factor @ h
    return h


@pytest.mark.parametrize("memory", [1, 2, 5])
@pytest.mark.parametrize("damping", [1.0, 0.7])
def test_iterates_are_those_of_the_matrices(memory, damping):
    """Twelve calls, in which the ring is used more than twice with the longest memory."""
    received, _ = _run(tfdeq.Broyden(max_steps=20, memory=memory, damping=damping), 12)
    expected, _ = _dense(12, memory, damping)
    for one, other in zip(received, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def _apply_inverse(state, v):
    """H v from the state: −H v = v + Σ c_j u_j."""
    steps, updates, inverse = (
        tensor.numpy()[0] for tensor in (state.steps, state.updates, state.inverse)
    )
    return -(v + (inverse @ (steps @ v)) @ updates)


@pytest.mark.parametrize("memory", [1, 3])
@pytest.mark.parametrize("damping", [1.0, 0.7])
def test_newest_secant_equation_holds_past_the_limit(memory, damping):
    iterates, states = _run(tfdeq.Broyden(max_steps=20, memory=memory, damping=damping), 10)
    _, inverses = _dense(10, memory, damping)
    g = [_map(z) - z for z in iterates]
    for k in range(1, 10):
        s, y = iterates[k] - iterates[k - 1], g[k] - g[k - 1]
        np.testing.assert_allclose(_apply_inverse(states[k], y), s, rtol=1e-10, atol=1e-12)
        columns = [_apply_inverse(states[k], e) for e in np.eye(SIZE)]
        np.testing.assert_allclose(np.stack(columns, axis=1), inverses[k], rtol=1e-7, atol=1e-9)
        solver = tfdeq.Broyden(max_steps=20, memory=memory, damping=damping)
        rows = [
            solver.transposed_inverse(states[k], tf.constant([k + 1]), tf.constant(e[None]))[0]
            for e in np.eye(SIZE)
        ]
        np.testing.assert_allclose(-np.stack(rows, axis=1), inverses[k].T, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_a_long_solve_with_a_short_memory(mode):
    a, x = linear_case(batch=4, size=SIZE, radius=0.95, seed=2)

    def solve():
        solver = tfdeq.Broyden(max_steps=200, tolerance=1e-10, memory=4)
        return iterate(lambda z: linear(z, a, x), tf.zeros_like(x), solver)

    solution = in_mode(solve, mode)()
    assert solution.converged.numpy().all()
    expected = np.linalg.solve((np.eye(SIZE) - a).T, x.T).T
    # The condition of I − A is below 1e3.
    np.testing.assert_allclose(solution.z, expected, rtol=1e-7, atol=1e-7)


def test_singular_update_is_left_out():
    """f(z) = z + constant: y = 0; the other sample converges as if it were alone."""
    slope = tf.constant([[1.0], [0.5]], tf.float64)
    solver = tfdeq.Broyden(max_steps=8, tolerance=1e-10, memory=2)
    solution = iterate(lambda z: slope * z + 1.0, tf.zeros([2, 1], tf.float64), solver)
    assert np.isfinite(solution.z).all()
    assert solution.status.numpy().tolist() == [tfdeq.Status.MAX_STEPS, tfdeq.Status.CONVERGED]
    alone = iterate(lambda z: 0.5 * z + 1.0, tf.zeros([1, 1], tf.float64), solver)
    np.testing.assert_array_equal(alone.z[0], solution.z[1])


def test_memory_shapes():
    state = tfdeq.Broyden(max_steps=9, memory=3).initial_state(tf.zeros([2, 7]))
    assert state.steps.shape == state.updates.shape == [2, 3, 7]
    assert state.inverse.shape == [2, 3, 3]


def test_restart_forgets_the_samples_in_the_mask():
    random = np.random.default_rng(0)
    z, f_z = (tf.constant(random.normal(size=(2, 5))) for _ in range(2))
    solver = tfdeq.Broyden(max_steps=9, memory=3)
    state = solver.initial_state(z)
    for k in range(4):
        state, _ = solver.step(state, tf.constant(k), z + float(k), f_z * (1.0 + k))
    forgotten = solver.restart(state, tf.constant([True, False]))
    _, after = solver.step(forgotten, tf.constant(4), z, f_z)
    _, usual = solver.step(state, tf.constant(4), z, f_z)
    np.testing.assert_allclose(after[0], f_z[0], rtol=1e-14)
    np.testing.assert_array_equal(after[1], usual[1])
