"""Tests of tfdeq.adjoints.reversible_backprop: the gradient of the reversed iterations."""

import re

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.adjoints.unrolled_test import _Probe
from tests.support.cases import MODES, fast, in_mode, linear_case, tanh_cell


def _case(dtype="float64", radius=0.9):
    return tuple(tf.constant(part.astype(dtype)) for part in linear_case(radius=radius, seed=8))


def _gradients(solver, mode, max_steps=None, dtype="float64", tolerance=None):
    def run(a, x):
        with tf.GradientTape() as tape:
            tape.watch([a, x])
            solution = tfdeq.fixed_point(
                tanh_cell,
                0.5 * tf.ones_like(x),
                (a, x),
                solver,
                "reversible_backprop",
                tolerance,
                max_steps,
            )
            loss = tf.reduce_sum(solution.z**3)
        return solution, tape.gradient(loss, [a, x])

    return in_mode(run, mode)(*_case(dtype))


def _backpropagated(index, beta):
    """Returns the iterate at each sample's index, and its gradients by a tape in float64."""
    a, x = _case()
    with tf.GradientTape() as tape:
        tape.watch([a, x])
        before = w = 0.5 * tf.ones_like(x)
        iterates = [w]
        for _ in range(max(index)):
            before, w = w, (1 - beta) * before + beta * tanh_cell(w, a, x)
            iterates.append(w)
        z = tf.stack([iterates[k][row] for row, k in enumerate(index)])
        loss = tf.reduce_sum(z**3)
    return z, tape.gradient(loss, [a, x], unconnected_gradients="zero")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("beta", "max_steps"),
    fast([(0.95, 60)], [(0.8, 1), (0.8, 2), (0.8, 17), (0.5, 60), (0.95, 60)]),
)
def test_equals_backpropagation_through_the_same_iterations(mode, beta, max_steps):
    """Even if rounding, amplified over all steps, would be 20^60 times too large."""
    solver = tfdeq.Reversible(max_steps, 1e-30, beta)
    solution, gradients = _gradients(solver, mode)
    # After convergence to the last bit, 60 steps end as stagnated; the best iterate is one of the
    # last few.
    assert max_steps == 60 or solution.steps.numpy().tolist() == [max_steps] * 3
    index = [step - 1 for step in solution.steps.numpy().tolist()]
    z, expected = _backpropagated(index, beta)
    # A segment amplifies rounding by at most 1e6, and its final error is damped again.
    for one, other in zip([solution.z, *gradients], [z, *expected], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", fast(["float64"], ["float64", "float32"]))
@pytest.mark.parametrize("mode", MODES)
def test_each_sample_is_reversed_for_its_own_steps(mode, dtype):
    """Samples that stop early for either reason; float32 against float64's backpropagation."""
    solver = tfdeq.Reversible(tolerance=1e-4)
    settings = {"max_steps": tf.constant([3, 40, 40]), "tolerance": tf.constant([1e-4, 1e-4, 1e-2])}
    solution, gradients = _gradients(solver, mode, dtype=dtype, **settings)
    index = [step - 1 for step in solution.steps.numpy().tolist()]
    assert index[0] == 2
    assert index[1] > index[2] + 3
    assert solution.converged.numpy().tolist() == [False, True, True]
    z, expected = _backpropagated(index, 0.8)
    # float32: rounding of z of a few 1e-8, and of sums over the steps.
    tolerance = 1e-10 if dtype == "float64" else 3e-6
    for one, other in zip([solution.z, *gradients], [z, *expected], strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_the_best_iterate_carries_the_gradient_that_led_to_it():
    """One entry converges while another one leaves its fixed point: the best is in the middle."""
    slope = tf.constant([0.0, -3.0], tf.float64)
    x = tf.constant([[1.0, 2.0], [3.0, 4.0]], tf.float64)
    # The second entry starts within 1e-3 of its fixed point x / 4.
    z0 = tf.constant([[0.0, 0.501], [0.0, 1.001]], tf.float64)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        solver = tfdeq.Reversible(12, 1e-9)
        solution = tfdeq.fixed_point(
            lambda z, x: slope * z + x, z0, (x,), solver, tfdeq.ReversibleBackprop()
        )
        before = w = z0
        iterates = []
        for _ in range(12):
            iterates.append(w)
            before, w = w, 0.2 * before + 0.8 * (slope * w + x)
        images = tf.stack([slope * w + x for w in iterates])
        residuals = tf.norm(images - tf.stack(iterates), axis=2) / tf.norm(images, axis=2)
        index = np.argmin(residuals, axis=0).tolist()
        z = tf.stack([iterates[k][row] for row, k in enumerate(index)])
    assert all(0 < k < 11 for k in index)
    np.testing.assert_allclose(solution.z, z, rtol=1e-12)
    np.testing.assert_allclose(tape.gradient(solution.z, x), tape.gradient(z, x), rtol=1e-9)


def test_solution_is_the_solvers():
    a, x = _case("float32")
    solver = tfdeq.Reversible(40, 1e-3)
    own = tfdeq.fixed_point(tanh_cell, x, (a, x), solver, "reversible_backprop")
    implicit = tfdeq.fixed_point(tanh_cell, x, (a, x), solver, "implicit")
    np.testing.assert_array_equal(own.steps, implicit.steps)
    np.testing.assert_array_equal(own.status, implicit.status)
    # float64 states against float32 ones.
    np.testing.assert_allclose(own.z, implicit.z, atol=1e-6)
    np.testing.assert_allclose(own.residual, implicit.residual, rtol=1e-3)


@pytest.mark.slow
def test_approaches_the_implicit_gradient():
    a, x = _case()

    def gradient(solver, adjoint):
        with tf.GradientTape() as tape:
            tape.watch(a)
            z = tfdeq.fixed_point(tanh_cell, tf.zeros_like(x), (a, x), solver, adjoint).z
        return tape.gradient(z, a)

    found = gradient(tfdeq.Reversible(400, 1e-12), "reversible_backprop")
    expected = gradient(tfdeq.Broyden(60, 1e-13), "implicit")
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_nothing_is_kept_for_the_backward_pass():
    a, x = _case()
    with _Probe() as probe:
        with tf.GradientTape() as tape:
            tape.watch(a)
            z = tfdeq.fixed_point(
                lambda z, a, x: tanh_cell(probe(z), a, x),
                tf.zeros_like(x),
                (a, x),
                tfdeq.Reversible(20, 1e-30),
                "reversible_backprop",
            ).z
        assert probe.alive() == 0
        probe.most = 0
        tape.gradient(z, a)
        assert probe.most <= 1


@pytest.mark.slow
def test_no_buffer_grows_with_the_steps():
    """The compiled forward and backward pass has the same buffers for 6 steps and 600."""
    a, x = _case()

    def shapes(max_steps):
        @tf.function(jit_compile=True, autograph=False)
        def run(a, x):
            with tf.GradientTape() as tape:
                tape.watch([a, x])
                solver = tfdeq.Reversible(max_steps, 1e-30)
                z = tfdeq.fixed_point(tanh_cell, x, (a, x), solver, "reversible_backprop").z
            return tape.gradient(z, [a, x])

        program = run.experimental_get_compiler_ir(a, x)(stage="optimized_hlo")
        return set(re.findall(r"\w+\[[\d,]*\]", program))

    assert shapes(6) == shapes(600)


def test_a_second_derivative_is_refused():
    a, x = _case()
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            z = tfdeq.fixed_point(tanh_cell, x, (a, x), "reversible", "reversible_backprop").z
        gradient = inner.gradient(z, x)
    with pytest.raises(ValueError, match="first derivatives only. .* use tfdeq.Implicit"):
        outer.gradient(gradient, x)


def test_another_solver_is_refused():
    x = tf.zeros([2, 3])
    with pytest.raises(
        ValueError, match="needs the forward solver tfdeq.Reversible; received Broyden"
    ):
        tfdeq.fixed_point(lambda z: 0.5 * z, x, (), "broyden", "reversible_backprop")
