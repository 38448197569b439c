"""Tests of tfdeq.solvers.broyden, compared with the dense update."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, in_mode, linear, linear_case
from tfdeq.iteration import iterate

SIZE = 6


def _map(z):
    """A smooth map [D] -> [D] that is neither linear nor symmetric."""
    a, x = linear_case(batch=1, size=SIZE, radius=0.9, seed=7)
    return np.tanh(z @ a + x[0]) + 0.1 * np.roll(z, 1) ** 2


def _run(solver, calls):
    """Returns the solver's states and iterates for a number of calls of step, from z = 0."""
    z = np.zeros([1, SIZE])
    state = solver.initial_state(tf.constant(z))
    iterates, states = [z[0]], []
    for k in range(calls):
        f_z = _map(iterates[-1])
        state, z = solver.step(
            state, tf.constant(k), tf.constant(iterates[-1][None]), tf.constant(f_z[None])
        )
        iterates.append(z.numpy()[0])
        states.append(state)
    return iterates, states


def _dense(calls, damping):
    """Makes Broyden's good update with H as a matrix; returns iterates, and H after each call."""
    z, h = np.zeros(SIZE), -np.eye(SIZE)
    g = _map(z) - z
    iterates, inverses = [z], [h]
    for _ in range(calls):
        s = -damping * h @ g
        z = z + s
        y = _map(z) - z - g
        g = g + y
        h = h + np.outer(s - h @ y, s @ h) / (s @ h @ y)
        np.testing.assert_allclose(h @ y, s, atol=1e-10)  # the secant equation, of the reference
        iterates.append(z)
        inverses.append(h)
    return iterates, inverses


@pytest.mark.parametrize("damping", [1.0, 0.7])
def test_iterates_are_those_of_the_dense_update(damping):
    calls = 12
    received, _ = _run(tfdeq.Broyden(max_steps=20, damping=damping), calls)
    expected, _ = _dense(calls, damping)
    for one, other in zip(received, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    assert np.linalg.norm(_map(received[-1]) - received[-1]) < 1e-2


def _apply_inverse(state, count, damping, v):
    """H v from the compact state, with `count` updates: −H v = v + Σ c_i d_i."""
    steps = state.steps.numpy()[0]
    c = ((steps @ v) @ state.inverse.numpy()[0, : len(steps)])[:count]
    d = steps[1 : count + 1] - (1 - damping) * steps[:count]
    return -(v + c @ d)


@pytest.mark.parametrize("damping", [1.0, 0.7])
def test_secant_equation_holds_after_each_step(damping):
    """H y = s for the newest pair, and the whole H equals the dense one."""
    solver = tfdeq.Broyden(max_steps=20, damping=damping)
    iterates, states = _run(solver, 9)
    _, inverses = _dense(9, damping)
    g = [_map(z) - z for z in iterates]
    for k in range(1, 9):
        s, y = iterates[k] - iterates[k - 1], g[k] - g[k - 1]
        np.testing.assert_allclose(_apply_inverse(states[k], k, damping, y), s, atol=1e-11)
        columns = [_apply_inverse(states[k], k, damping, e) for e in np.eye(SIZE)]
        np.testing.assert_allclose(np.stack(columns, axis=1), inverses[k], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("damping", [1.0, 0.7])
def test_gram_matrix_is_that_of_the_steps(damping):
    """It is never computed from the steps, so it could accumulate errors."""
    iterates, states = _run(tfdeq.Broyden(max_steps=12, damping=damping), 12)
    steps = states[-1].steps.numpy()[0]
    np.testing.assert_allclose(steps, np.diff(iterates, axis=0), atol=1e-12)
    gram = states[-1].gram.numpy()[0]
    np.testing.assert_allclose(gram, steps @ steps.T, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_linear_problem_ends_within_2d_steps(mode, size):
    """Gay, SIAM J. Numer. Anal. 16(4), 1979: z_2D is exact; its evaluation is the 2D + 1st.

    Spectral radius above 1: plain iteration would diverge.
    """
    a, x = linear_case(batch=4, size=size, radius=3.0, seed=size)

    def solve():
        solver = tfdeq.Broyden(max_steps=2 * size + 1, tolerance=1e-8)
        return iterate(lambda z: linear(z, a, x), tf.zeros_like(x), solver)

    solution = in_mode(solve, mode)()
    assert solution.converged.numpy().all()
    assert (solution.steps.numpy() <= 2 * size + 1).all()
    expected = np.linalg.solve((np.eye(size) - a).T, x.T).T
    np.testing.assert_allclose(solution.z, expected, rtol=1e-5)


def test_singular_update_starts_that_sample_afresh():
    """f(z) = z + constant: y = 0, so the update divides by zero; the other sample continues."""
    slope = tf.constant([[1.0], [0.5]], tf.float64)
    solver = tfdeq.Broyden(max_steps=8, tolerance=1e-10)
    solution = iterate(lambda z: slope * z + 1.0, tf.zeros([2, 1], tf.float64), solver)
    assert np.isfinite(solution.z).all()
    assert solution.status.numpy().tolist() == [tfdeq.Status.MAX_STEPS, tfdeq.Status.CONVERGED]
    assert solution.steps[1] == 3
    alone = iterate(lambda z: 0.5 * z + 1.0, tf.zeros([1, 1], tf.float64), solver)
    np.testing.assert_array_equal(alone.z[0], solution.z[1])


def test_budget_beyond_the_memory_of_the_solver():
    """max_steps of a call above the solver's own: the estimate is reset and the solve continues."""
    a, x = linear_case(size=SIZE, radius=0.95, seed=2)
    solver = tfdeq.Broyden(max_steps=4, tolerance=1e-10)
    solution = iterate(lambda z: linear(z, a, x), tf.zeros_like(x), solver, max_steps=300)
    assert solution.converged.numpy().all()
    assert (solution.steps.numpy() > 8).all()


def test_memory_shapes():
    """All steps and no other vectors; the same with a memory that is larger than the budget."""
    for memory in (None, 9, 20):
        solver = tfdeq.Broyden(max_steps=9, memory=memory)
        state = tf.function(solver.initial_state, jit_compile=True)(tf.zeros([2, 7]))
        assert state.steps.shape == [2, 9, 7]
        assert state.gram.shape == state.inverse.shape == [2, 9, 9]


def test_history_grows_outside_of_xla():
    """The cost of a step depends on the stored steps, not on the budget."""
    _, states = _run(tfdeq.Broyden(max_steps=9), 12)
    # After nine steps the estimate is reset, and uses the existing rows.
    assert [state.steps.shape[1] for state in states] == [*range(1, 10), 9, 9, 9]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": 0}, "memory must be an integer of at least 1; received 0"),
        ({"memory": 2.5}, "memory must be an integer of at least 1; received 2.5"),
        ({"damping": 0.0}, "damping must be a finite number greater than 0; received 0.0"),
        ({"damping": 1.5}, "damping must be at most 1, the undamped step; received 1.5"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        tfdeq.Broyden(**settings)


def test_a_calls_larger_budget_is_remembered_whole():
    """40 dimensions, spectral radius 0.99: more steps than the solver's own eight are needed."""
    random = np.random.default_rng(0)
    q, _ = np.linalg.qr(random.normal(size=(40, 40)))
    a = tf.constant(q @ np.diag(np.linspace(-0.99, 0.99, 40)) @ q.T)
    x = tf.constant(random.normal(size=(2, 40)))
    small, large = tfdeq.Broyden(max_steps=8), tfdeq.Broyden(max_steps=90)
    one = tfdeq.fixed_point(lambda z, a, x: z @ a + x, x, (a, x), small, max_steps=90)
    other = tfdeq.fixed_point(lambda z, a, x: z @ a + x, x, (a, x), large)
    np.testing.assert_array_equal(one.steps, other.steps)
    np.testing.assert_allclose(one.z, other.z, rtol=1e-12)
    assert other.converged.numpy().all()
