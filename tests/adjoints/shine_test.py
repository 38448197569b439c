"""Tests of tfdeq.adjoints.shine: the forward solve's inverse estimate in the backward pass."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, Recorder, in_mode, linear, linear_case, tanh_cell

TIGHT = tfdeq.Broyden(max_steps=60, tolerance=1e-13)


def _gradients(adjoint, mode="eager", cell=tanh_cell, solver=TIGHT, size=4, callback=None):
    def run(a, x):
        with tf.GradientTape() as tape:
            tape.watch([a, x])
            z = tfdeq.fixed_point(
                cell, tf.zeros_like(x), (a, x), solver, adjoint, backward_callback=callback
            ).z
            loss = tf.reduce_sum(z**3)
        return tape.gradient(loss, [a, x])

    return in_mode(run, mode)(*map(tf.constant, linear_case(size=size, radius=0.6, seed=8)))


def _error(found, exact):
    return max(np.abs(one - other).max() for one, other in zip(found, exact, strict=True))


def _dense_estimate(states, images):
    """Returns H after Broyden's updates for the given iterates, by the textbook formula."""
    h = -np.eye(states.shape[1])
    residuals = images - states
    for s, y in zip(np.diff(states, axis=0), np.diff(residuals, axis=0), strict=True):
        h += np.outer(s - h @ y, s @ h) / (s @ h @ y)
    return h


@pytest.mark.parametrize("damping", [1.0, 0.7])
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_u_is_the_transposed_estimate_of_each_sample(mode, damping):
    """Samples end after 3, 6 and 5 evaluations; later evaluations in the batch must not affect them."""
    a, x = linear_case(radius=0.6, seed=8)
    record = Recorder(lambda z: linear(z, a, x))
    solver = tfdeq.Broyden(tolerance=1e-13, damping=damping)

    def run(x):
        shift = tf.zeros_like(x)
        with tf.GradientTape() as tape:
            tape.watch(shift)
            z = tfdeq.fixed_point(
                lambda z, shift: record(z) + shift,
                tf.zeros_like(x),
                (shift,),
                solver,
                "shine",
                max_steps=[3, 6, 5],
            ).z
        return tape.gradient(z, shift, output_gradients=tf.cos(x))

    u = in_mode(run, mode)(tf.constant(x)).numpy()
    states = np.stack(record.states[:6])
    for sample, steps in enumerate((3, 6, 5)):
        own = states[:steps, sample]
        h = _dense_estimate(own, own @ a + x[sample])
        np.testing.assert_allclose(u[sample], -h.T @ np.cos(x[sample]), rtol=1e-9)


def test_sample_by_sample_as_if_alone_with_a_memory_that_restarts():
    a, x = linear_case(radius=0.6, seed=8)
    solver = tfdeq.Broyden(max_steps=30, tolerance=1e-9, memory=3)

    def u(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            solution = tfdeq.fixed_point(tanh_cell, tf.zeros_like(x), (a, x), solver, "shine")
        return tape.gradient(solution.z, x), solution.steps

    together, steps = u(tf.constant(x))
    assert len(set(steps.numpy().tolist())) > 1
    for sample in range(3):
        alone, _ = u(tf.constant(x[sample : sample + 1]))
        # The estimate's last steps are differences near 1e-9 of numbers near 1.
        np.testing.assert_allclose(alone[0], together[sample], rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_state_of_one_number_is_exact(mode):
    """f(z) = A z + x: the first secant is the whole Jacobian."""
    found = _gradients("shine", mode, linear, size=1)
    assert _error(found, _gradients("implicit", cell=linear, size=1)) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_refinement_makes_it_exact(mode):
    exact = _gradients("implicit")
    errors = [_error(_gradients(tfdeq.Shine(steps), mode), exact) for steps in (0, 3, 40)]
    assert _error(_gradients("jacobian_free"), exact) > 3 * errors[0]
    assert errors[0] > 10 * errors[1]
    assert errors[2] < 1e-12


def test_the_callback_sees_a_refinement_alone():
    solutions = []
    _gradients(tfdeq.Shine(), callback=solutions.append)
    assert not solutions
    _gradients(tfdeq.Shine(2), callback=solutions.append)
    assert solutions[0].steps.numpy().tolist() == [2, 2, 2]


def test_estimate_that_is_not_finite_falls_back():
    x = tf.constant([[0.5], [2.0]])
    f = lambda z, x: tf.where(z > 1.5, np.nan, 0.5 * z + x)  # noqa: E731
    with tf.GradientTape() as tape:
        tape.watch(x)
        solution = tfdeq.fixed_point(f, tf.zeros_like(x), (x,), adjoint="shine")
    assert solution.status.numpy().tolist() == [tfdeq.Status.CONVERGED, tfdeq.Status.NON_FINITE]
    np.testing.assert_allclose(tape.gradient(solution.z, x), [[2.0], [1.0]], rtol=1e-5)


def test_another_solver_is_refused():
    x = tf.zeros([2, 3])
    with pytest.raises(ValueError, match="Shine needs the forward solver tfdeq.Broyden; received"):
        tfdeq.fixed_point(lambda z: 0.5 * z, x, (), "anderson", "shine")


def test_settings_are_checked():
    with pytest.raises(
        ValueError, match="refine_steps must be an integer of at least 0; received -1"
    ):
        tfdeq.Shine(-1)
