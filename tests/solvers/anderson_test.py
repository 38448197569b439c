"""Tests of tfdeq.solvers.anderson, compared with numpy's least squares."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast, linear, linear_case
from tfdeq.iteration import iterate

SIZE = 7


def _map(z):
    a, x = linear_case(batch=1, size=SIZE, radius=0.9, seed=7)
    return np.tanh(z @ a + x[0]) + 0.1 * np.roll(z, 1) ** 2


def _run(solver, calls):
    iterates = [np.zeros(SIZE)]
    state = solver.initial_state(tf.zeros([1, SIZE], tf.float64))
    for k in range(calls):
        z = iterates[-1][None]
        state, z = solver.step(state, tf.constant(k), tf.constant(z), tf.constant(_map(z)))
        iterates.append(z.numpy()[0])
    return iterates, state


def _history(iterates, k, memory):
    """Returns g_k and the last differences of z and g, as columns."""
    first = max(0, k - memory)
    z = np.stack(iterates[first : k + 1])
    g = np.stack([_map(row) - row for row in z])
    return g[-1], np.diff(z, axis=0).T, np.diff(g, axis=0).T


def _gamma(g, d_g, ridge):
    """argmin ‖g − ΔG γ‖² + ridge ‖diag(‖Δg_i‖) γ‖², by least squares on the stacked system."""
    penalty = np.sqrt(ridge) * np.diag(np.linalg.norm(d_g, axis=0))
    rows = np.concatenate([d_g, penalty])
    return np.linalg.lstsq(rows, np.concatenate([g, np.zeros(len(penalty))]), rcond=None)[0]


@pytest.mark.parametrize(
    ("memory", "damping", "ridge"),
    fast(
        [(1, 1.0, 1e-6), (3, 0.7, 0.1), (6, 1.0, 1e-6), (6, 0.7, 1e-6)],
        itertools.product([1, 3, 6], [1.0, 0.7], [1e-6, 0.1]),
    ),
)
def test_each_step_minimises_the_regularised_residual(memory, damping, ridge):
    """Every iterate is that of numpy's least squares, for more than one cycle of the ring."""
    iterates, _ = _run(tfdeq.Anderson(memory=memory, damping=damping, ridge=ridge), 9)
    np.testing.assert_allclose(iterates[1], damping * _map(np.zeros(SIZE)), rtol=1e-12)
    for k in range(1, 9):
        g, d_z, d_g = _history(iterates, k, memory)
        gamma = _gamma(g, d_g, ridge)
        expected = iterates[k] + damping * g - (d_z + damping * d_g) @ gamma
        # The condition number of the Gram matrix is at most m / ridge = 6e6, which leaves ten of
        # sixteen digits.
        np.testing.assert_allclose(iterates[k + 1], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("ridge", [1e-6, 0.1])
def test_gamma_satisfies_the_normal_equations(ridge):
    """γ, computed from the step itself, satisfies (ΔGᵀΔG + ridge diag) γ − ΔGᵀg = 0."""
    damping, memory = 0.7, 4
    iterates, _ = _run(tfdeq.Anderson(memory=memory, damping=damping, ridge=ridge), 7)
    g, d_z, d_g = _history(iterates, 6, memory)
    correction = iterates[6] + damping * g - iterates[7]
    gamma = np.linalg.lstsq(d_z + damping * d_g, correction, rcond=None)[0]
    gram = d_g.T @ d_g
    residual = (gram + ridge * np.diag(np.diag(gram))) @ gamma - d_g.T @ g
    np.testing.assert_allclose(residual, 0, atol=1e-9 * np.linalg.norm(d_g.T @ g))


def test_ring_holds_the_last_differences():
    iterates, state = _run(tfdeq.Anderson(memory=3), 8)
    _, _, d_g = _history(iterates, 7, 3)
    rows = state.differences.numpy()[0]
    np.testing.assert_allclose(
        np.array(sorted(rows.tolist())), np.array(sorted(d_g.T.tolist())), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(state.gram[0], rows @ rows.T, rtol=1e-12)


@pytest.mark.parametrize("scale", fast([1e12], [1e-12, 1e12]))
def test_ridge_does_not_depend_on_the_scale(scale):
    """A linear problem in other units takes the same steps to the same relative residual."""
    a, x = linear_case(size=SIZE, radius=0.95, seed=3)
    solver = tfdeq.Anderson(max_steps=60, tolerance=1e-12)
    unit = iterate(lambda z: linear(z, a, x), tf.zeros_like(x), solver)
    scaled = iterate(lambda z: linear(z, a, x * scale), tf.zeros_like(x), solver)
    assert unit.converged.numpy().all()
    assert scaled.converged.numpy().all()
    # Rounding depends on the scale, which may add or save an iteration.
    np.testing.assert_allclose(scaled.steps, unit.steps, atol=1)
    np.testing.assert_allclose(scaled.z / scale, unit.z, rtol=1e-9)


def test_full_memory_solves_a_linear_problem_like_gmres():
    """Walker and Ni 2011, theorem 2.2: in D + 1 steps, up to the ridge, which is negligible here."""
    a, x = linear_case(size=4, radius=3.0, seed=1)
    solver = tfdeq.Anderson(max_steps=7, tolerance=1e-8, memory=6, ridge=1e-14)
    solution = iterate(lambda z: linear(z, a, x), tf.zeros_like(x), solver)
    assert solution.converged.numpy().all()


def test_repeated_iterates_do_no_harm():
    """A constant map: every difference after the first is zero."""
    x = tf.ones([2, 3])
    solver = tfdeq.Anderson(max_steps=5, tolerance=1e-30)
    solution = iterate(lambda z: x, x + 1.0, solver)
    np.testing.assert_array_equal(solution.z, x)
    assert solution.converged.numpy().all()
    state = solver.initial_state(x)
    for k in range(4):
        state, z = solver.step(state, tf.constant(k), x, x)
        np.testing.assert_array_equal(z, x)


@pytest.mark.parametrize("kind", [1, 2])
def test_restart_forgets_the_samples_in_the_mask_and_leaves_the_rings(kind):
    random = np.random.default_rng(0)
    z, f_z = (tf.constant(random.normal(size=(5, 2, SIZE))) for _ in range(2))
    solver = tfdeq.Anderson(memory=3, kind=kind, safeguard=2.0)

    def steps(state, first, last):
        for k in range(first, last):
            state, answer = solver.step(state, tf.constant(k), z[k], f_z[k])
        return state, answer

    state, _ = steps(solver.initial_state(z[0]), 0, 3)
    forgotten = solver.restart(state, tf.constant([True, False]))
    # No pass over the histories: they are the same tensors.
    assert forgotten.updates is state.updates
    assert forgotten.differences is state.differences
    # Of the sample in the mask the first step is plain, and the next knows one difference, as in a new solve.
    # (z + (f(z) − z) is f(z) up to rounding.)
    np.testing.assert_allclose(steps(forgotten, 3, 4)[1][0], f_z[3, 0], rtol=1e-13)
    fresh, _ = steps(solver.initial_state(z[0]), 3, 5)
    after, _ = steps(forgotten, 3, 5)
    np.testing.assert_allclose(steps(after, 3, 4)[1][0], steps(fresh, 3, 4)[1][0], rtol=1e-12)
    np.testing.assert_array_equal(steps(forgotten, 3, 5)[1][1], steps(state, 3, 5)[1][1])


def test_memory_does_not_grow_with_the_budget():
    state = tfdeq.Anderson(max_steps=1000, memory=3).initial_state(tf.zeros([2, 7]))
    assert state.updates.shape == state.differences.shape == [2, 3, 7]
    assert state.gram.shape == [2, 3, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": 0}, "memory must be an integer of at least 1; received 0"),
        ({"damping": 0.0}, "damping must be a finite number greater than 0; received 0.0"),
        ({"damping": 1.5}, "damping must be at most 1, the undamped step; received 1.5"),
        ({"ridge": 0.0}, "ridge must be a finite number greater than 0; received 0.0"),
        ({"ridge": -1.0}, "ridge must be a finite number greater than 0; received -1.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        tfdeq.Anderson(**settings)
