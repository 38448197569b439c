"""Tests of tfdeq.numerics.function_evaluation: residuals, products with the Jacobian, forgotten variables."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import MODES, in_mode, linear_case, tanh_cell
from tfdeq import solvers
from tfdeq.iteration import iterate
from tfdeq.numerics.function_evaluation import evaluate_linearised, relative_residual
from tfdeq.numerics.state_layout import StateLayout


def test_relative_residual():
    z = tf.constant([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    f_z = tf.constant([[0.0, 0.0], [6.0, 8.0], [0.0, 2.0]])
    np.testing.assert_allclose(relative_residual(z, f_z), [0.0, 0.5, 1.0])


@pytest.mark.parametrize("mode", MODES)
def test_products_are_those_with_the_jacobian(mode):
    a, x = linear_case(2, 3, 0.8, seed=1)
    z, v = (np.random.default_rng(s).normal(size=(2, 3)) for s in (2, 3))

    def compute(z, v):
        layout = StateLayout(z)
        image, product = evaluate_linearised(lambda z: tanh_cell(z, a, x), layout, z)
        return image, product(v), product(2 * v)

    image, product, twice = in_mode(compute, mode)(tf.constant(z), tf.constant(v))
    np.testing.assert_allclose(image, np.tanh(z @ a + x), rtol=1e-12)
    expected = (1 - np.tanh(z @ a + x) ** 2) * (v @ a)
    np.testing.assert_allclose(product, expected, rtol=1e-12)
    np.testing.assert_allclose(twice, 2 * expected, rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_trainable_variables_closed_over(mode):
    weight = tf.Variable(0.5, name="forgotten")
    solve = in_mode(
        lambda: iterate(lambda z: weight * z + 1.0, tf.zeros([2, 3]), solvers.get("broyden")), mode
    )
    with pytest.raises(ValueError, match=r"not in args \(forgotten.*\).*Pass them, f\(z, \*args\)"):
        solve()


def test_other_variables_may_be_closed_over():
    fixed = tf.Variable(0.5, trainable=False)
    solution = iterate(lambda z: fixed * z + 1.0, tf.zeros([2, 3]), solvers.get("broyden"))
    np.testing.assert_allclose(solution.z, np.full([2, 3], 2.0), rtol=2e-3)
