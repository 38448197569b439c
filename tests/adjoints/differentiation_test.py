"""Tests of tfdeq.adjoints.differentiation: forward mode, and both modes nested."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast, in_mode

RULES = {
    "implicit": tfdeq.Implicit(),
    "unrolled": tfdeq.Unrolled(80),
    "unrolled, kept": tfdeq.Unrolled(80, checkpointed=False),
    "phantom": tfdeq.PhantomGradient(80),
}
SOLVER = tfdeq.FixedPointIteration(200, 1e-14)


def _case():
    random = np.random.default_rng(0)
    a, d_a = 0.2 * random.normal(size=(3, 3)), random.normal(size=(3, 3))
    x, d_x = random.normal(size=(2, 3)), random.normal(size=(2, 3))
    return [tf.constant(part) for part in (a, x, d_a, d_x)]


def _solve(a, x, rule):
    return tfdeq.fixed_point(
        lambda z, a, x: tf.tanh(z @ a + x), tf.zeros_like(x), (a, x), SOLVER, rule
    ).z


def _difference(function, a, x, d_a, d_x, step=1e-5):
    ahead, behind = (
        function(a + step * d_a, x + step * d_x),
        function(a - step * d_a, x - step * d_x),
    )
    return (ahead - behind) / (2 * step)


@pytest.mark.parametrize("mode", fast(["graph"], ["eager", "graph"]))
@pytest.mark.parametrize("rule", fast(["implicit"], RULES))
def test_forward_mode_against_finite_differences(rule, mode):
    a, x, d_a, d_x = _case()

    def tangent():
        with tf.autodiff.ForwardAccumulator([a, x], [d_a, d_x]) as forward:
            z = _solve(a, x, RULES[rule])
        return forward.jvp(z)

    expected = _difference(lambda a, x: _solve(a, x, "implicit"), a, x, d_a, d_x)
    # Central differences at 1e-5: an error of 1e-10.
    np.testing.assert_allclose(in_mode(tangent, mode)(), expected, rtol=1e-8, atol=1e-8)


def test_one_application_alone_in_forward_mode():
    """The adjoint's own approximation: the derivative of one application."""
    a, x, d_a, d_x = _case()
    z = _solve(a, x, "implicit")
    with tf.autodiff.ForwardAccumulator([a, x], [d_a, d_x]) as forward:
        image = _solve(a, x, tfdeq.JacobianFree())
    expected = (1 - tf.tanh(z @ a + x) ** 2) * (z @ d_a + d_x)
    np.testing.assert_allclose(forward.jvp(image), expected, rtol=1e-10)


@pytest.mark.slow
def test_forward_over_reverse_and_reverse_over_forward():
    a, x, d_a, d_x = _case()

    def gradient(a):
        with tf.GradientTape() as tape:
            tape.watch(a)
            loss = tf.reduce_sum(_solve(a, x, "implicit") ** 3)
        return tape.gradient(loss, a)

    with tf.autodiff.ForwardAccumulator(a, d_a) as forward:
        inside = gradient(a)
    expected = _difference(lambda a, _: gradient(a), a, x, d_a, d_x)
    np.testing.assert_allclose(forward.jvp(inside), expected, rtol=1e-7, atol=1e-8)

    def squared_tangent(a):
        with tf.autodiff.ForwardAccumulator(x, d_x) as forward:
            z = _solve(a, x, "implicit")
        return tf.reduce_sum(forward.jvp(z) ** 2)

    with tf.GradientTape() as tape:
        tape.watch(a)
        loss = squared_tangent(a)
    found = tf.reduce_sum(tape.gradient(loss, a) * d_a)
    expected = _difference(lambda a, _: squared_tangent(a), a, x, d_a, d_x)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_what_forward_mode_cannot_do_says_so():
    a, x, _, d_x = _case()
    with (
        tf.autodiff.ForwardAccumulator(x, d_x),
        tf.autodiff.ForwardAccumulator(x, d_x),
        pytest.raises(ValueError, match="Replace one of them by a tf.GradientTape"),
    ):
        _solve(a, x, "implicit")
    with (
        tf.autodiff.ForwardAccumulator(x, d_x),
        pytest.raises(ValueError, match="first derivatives only"),
    ):
        tfdeq.fixed_point(
            lambda z, x: 0.5 * z + x, x, (x,), tfdeq.Reversible(), tfdeq.ReversibleBackprop()
        )
