"""Tests of tfdeq.adjoints.jacobian_free: one application at the equilibrium."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, in_mode, linear, linear_case

TIGHT = tfdeq.Broyden(max_steps=60, tolerance=1e-13)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("radius", "least"), [(0.1, 0.98), (0.5, 0.8)])
def test_gradient_is_one_product(mode, radius, least):
    a, x = linear_case(radius=radius, seed=8)

    def run(a, x):
        with tf.GradientTape() as tape:
            tape.watch([a, x])
            z = tfdeq.fixed_point(linear, tf.zeros_like(x), (a, x), TIGHT, "jacobian_free").z
            loss = tf.reduce_sum(z**3)
        return tape.gradient(loss, [a, x])

    d_a, d_x = in_mode(run, mode)(tf.constant(a), tf.constant(x))
    inverse = np.linalg.inv(np.eye(4) - a)
    z = x @ inverse
    np.testing.assert_allclose(d_x, 3 * z**2, rtol=1e-10)
    np.testing.assert_allclose(d_a, z.T @ (3 * z**2), rtol=1e-10)
    exact = 3 * z**2 @ inverse.T
    cosine = np.sum(exact * d_x) / np.linalg.norm(exact) / np.linalg.norm(d_x)
    # The angle is at most asin ‖A‖: the cosine at least 0.995 and 0.866.
    assert cosine > least


def test_exact_where_f_does_not_depend_on_z():
    x = tf.constant([[1.0, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = tfdeq.fixed_point(lambda z, x: x**2 + 0.0 * z, x, (x,), TIGHT, "jacobian_free").z
    np.testing.assert_allclose(tape.gradient(z, x), [[2.0, 4.0]])


def test_f_is_evaluated_once_for_the_gradient():
    a, x = map(tf.constant, linear_case())
    calls = []

    def f(z, a, x):
        calls.append(1)
        return linear(z, a, x)

    with tf.GradientTape() as tape:
        tape.watch(a)
        z = tfdeq.fixed_point(f, x, (a, x), TIGHT, "jacobian_free").z
    calls.clear()
    tape.gradient(z, a)
    assert len(calls) == 1
