"""Tests of the arguments of `fixed_point`: complex ones, rows that differ, what is not finite."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.cases import MODES, DenseCell, in_mode
from tfdeq import adjoints

Status = tfdeq.Status


@pytest.mark.parametrize("adjoint", ["implicit", "unrolled", "phantom_gradient", "jacobian_free"])
def test_gradient_of_a_complex_argument(adjoint):
    """A circular convolution by its spectrum, against the same map written out in real numbers."""
    random = np.random.default_rng(0)
    parts = tf.constant(0.3 * random.normal(size=(2, 3)))
    x = tf.constant(random.normal(size=(2, 4)))

    def loss(parts):
        w = tf.complex(parts[0], parts[1])
        f = lambda z, w, x: tf.signal.irfft(tf.signal.rfft(z) * w, [4]) + x  # noqa: E731
        solver = tfdeq.FixedPointIteration(200, 1e-13)
        rule = tfdeq.Unrolled(150) if adjoint == "unrolled" else adjoints.get(adjoint)
        z = tfdeq.fixed_point(f, tf.zeros_like(x), (w, x), solver, rule).z
        return tf.reduce_sum(z**2)

    with tf.GradientTape() as tape:
        tape.watch(parts)
        value = loss(parts)
    found = tape.gradient(value, parts)
    assert np.abs(found[0]).min() > 0
    if adjoint not in ("implicit", "unrolled"):
        return
    for place in np.ndindex(2, 3):
        step = np.zeros([2, 3])
        step[place] = 1e-6
        expected = (loss(parts + step) - loss(parts - step)) / 2e-6
        # Central differences: an error of 1e-9.
        np.testing.assert_allclose(found[place], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_an_input_that_is_not_finite_has_not_converged(mode):
    x = np.ones([4, 3], "float32")
    x[1, 0], x[2, 2] = np.inf, -np.inf

    def solve(x):
        f = lambda z, x: tf.tanh(0.5 * z + x)  # noqa: E731
        return tfdeq.fixed_point(f, tf.zeros_like(x), (x,), batched_args=[0])

    solution = in_mode(solve, mode)(tf.constant(x))
    expected = [Status.CONVERGED, Status.NON_FINITE, Status.NON_FINITE, Status.CONVERGED]
    assert solution.status.numpy().tolist() == expected
    layer = tfdeq.DEQLayer(DenseCell(3))
    assert layer(x, return_solution=True).status.numpy().tolist() == expected


@pytest.mark.parametrize("rows", [(3, 4), (3, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("known", [True, False])
def test_rows_are_checked_not_repaired(rows, known):
    of_x, of_z = rows
    x, z0 = tf.ones([of_x, 2]), tf.zeros([of_z, 2])
    shape = [of_x if known else None, 2], [of_z if known else None, 2]
    signature = [tf.TensorSpec(each, tf.float32) for each in shape]

    def solve(x, z0):
        return tfdeq.fixed_point(lambda z, x: 0.5 * z + x, z0, (x,), batched_args=[0]).z

    for function in (solve, tf.function(solve, input_signature=signature, autograph=False)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="a row for each sample"):
            function(x, z0)
