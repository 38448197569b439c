"""Tests of tfdeq.adjoints.adjoint: the common parts of all adjoints."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import MODES, in_mode
from tfdeq.adjoints.adjoint import (
    Adjoint,
    argument_gradients,
    attach,
    floating_leaves,
    vector_jacobian_product,
    with_floating_leaves,
)


@dataclasses.dataclass(frozen=True)
class _Rule(Adjoint):
    steps: int = 3


def test_incomplete_adjoint_says_what_it_lacks():
    with pytest.raises(TypeError, match=r"must define attach_gradient\(\) or solve\(\)"):
        Adjoint().solve(lambda z: z, None, (), None)


def test_config_round_trip():
    assert _Rule.from_config(_Rule(steps=5).get_config()) == _Rule(steps=5)


def _cell(z, a, x):
    return {"p": tf.tanh(z["q"] * a), "q": z["p"] + z["q"] ** 2 * x}


def test_product_and_its_derivative():
    """u^T dF/dz in closed form, and the derivative of that with respect to u, z and a."""
    random = np.random.default_rng(0)
    p, q, a, x, u, v = (tf.constant(random.normal(size=(2, 3))) for _ in range(6))
    with tf.GradientTape() as tape:
        tape.watch([q, a, u])
        product = vector_jacobian_product(
            _cell, {"p": p, "q": q}, (a, x), {"p": u, "q": v}, lambda z, _: z
        )
        total = tf.reduce_sum(product["q"])
    slope = 1 - tf.tanh(q * a) ** 2
    np.testing.assert_allclose(product["p"], v, rtol=1e-12)
    np.testing.assert_allclose(product["q"], u * slope * a + 2 * v * q * x, rtol=1e-12)
    d_q, d_a, d_u = tape.gradient(total, [q, a, u])
    bend = -2 * tf.tanh(q * a) * slope
    np.testing.assert_allclose(d_u, slope * a, rtol=1e-12)
    np.testing.assert_allclose(d_q, u * bend * a**2 + 2 * v * x, rtol=1e-12)
    np.testing.assert_allclose(d_a, u * (bend * q * a + slope), rtol=1e-12)


def test_targets_that_f_ignores_get_zeros():
    z, x = tf.ones([2, 1]), tf.ones([2, 5])
    product = vector_jacobian_product(lambda z, x: 2.0 * z, z, (x,), z, lambda _, args: args)
    np.testing.assert_array_equal(product[0], np.zeros([2, 5]))


@pytest.mark.parametrize("mode", MODES)
def test_attached_gradient_and_its_derivative(mode):
    """z = 2 with the gradient z d_z of a: dz/da = z, and so d²z/da² = z."""
    count = tf.constant([1, 2])

    def run(a):
        with tf.GradientTape() as outer:
            outer.watch(a)
            with tf.GradientTape() as inner:
                inner.watch(a)
                z = attach(
                    {"z": tf.constant([2.0])},
                    (a, count),
                    lambda z, args, d_z: [z["z"] * d_z["z"]],
                )["z"]
            first = inner.gradient(z, a)
        return z, first, outer.gradient(first, a)

    np.testing.assert_array_equal(in_mode(run, mode)(tf.constant([5.0])), [[2.0]] * 3)


def test_floating_leaves_there_and_back():
    args = ({"a": tf.ones([1]), "n": tf.constant([3])}, tf.zeros([2]))
    floats = floating_leaves(args)
    assert [leaf.shape[0] for leaf in floats] == [1, 2]
    again = with_floating_leaves(args, [leaf + 1 for leaf in floats])
    assert again[0]["n"].numpy() == [3]
    assert again[0]["a"].numpy() == [2.0]
    assert again[1].numpy().tolist() == [1.0, 1.0]


def test_argument_gradients_leave_integers_out():
    z, x, n = tf.ones([2, 1]), tf.ones([2, 1]), tf.constant([[3], [4]])
    f = lambda z, x, n: z * x * tf.cast(n, tf.float32)  # noqa: E731
    (d_x,) = argument_gradients(f, z, (x, n), z)
    np.testing.assert_array_equal(d_x, [[3.0], [4.0]])
