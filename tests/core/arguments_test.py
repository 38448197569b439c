"""Tests of the arguments of `fixed_point`: complex ones, other numbers of rows, non-finite values."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, DenseCell, fast, in_mode
from tfdeq import adjoints

Status = tfdeq.Status


@pytest.mark.parametrize(
    "adjoint",
    fast(
        ["implicit", "jacobian_free"], ["implicit", "unrolled", "phantom_gradient", "jacobian_free"]
    ),
)
def test_gradient_of_a_complex_argument(adjoint):
    """A circular convolution by its spectrum, compared with the same map in real numbers."""
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


@pytest.mark.parametrize(
    "rows",
    [
        (3, 4),
        pytest.param((3, 2), marks=pytest.mark.slow),
        pytest.param((3, 1), marks=pytest.mark.slow),
        (2, 3),
    ],
)
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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", fast([[0, 2]], [[1], [0, 2], [0, 1, 2, 3]]))
def test_samples_that_are_not_finite_stay_out_of_the_gradient_where_that_is_wanted(bad, mode):
    """Shared arguments get the gradient of the other samples alone."""
    random = np.random.default_rng(0)
    a, x = tf.constant(0.3 * random.normal(size=(3, 3))), random.normal(size=(4, 3))
    good = [row for row in range(4) if row not in bad]
    clean, x = tf.constant(x[good]), x.copy()
    x[bad, 1] = np.nan

    def gradient(a, x, kept, **settings):
        with tf.GradientTape() as tape:
            tape.watch([a, x])
            f = lambda z, a, x: tf.tanh(z @ a + x)  # noqa: E731
            solver = tfdeq.Broyden(60, 1e-12)
            z0 = tf.zeros_like(x)
            solution = tfdeq.fixed_point(f, z0, (a, x), solver, batched_args=[1], **settings)
            loss = tf.reduce_sum(tf.where(tf.constant(kept)[:, None], solution.z, 0.0) ** 2)
        return solution, tape.gradient(loss, [a, x])

    kept = [row in good for row in range(4)]
    run = in_mode(lambda a, x: gradient(a, x, kept, exclude_non_finite=True), mode)
    solution, (d_a, d_x) = run(a, tf.constant(x))
    status = [Status.CONVERGED if row in good else Status.NON_FINITE for row in range(4)]
    assert solution.status.numpy().tolist() == status
    expected_a, expected_x = np.zeros([3, 3]), np.zeros([0, 3])
    if good:
        _, (expected_a, expected_x) = gradient(a, clean, [True] * len(good))
    np.testing.assert_allclose(d_a, expected_a, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(d_x.numpy()[good], expected_x, rtol=1e-9)
    assert (d_x.numpy()[bad] == 0).all()
    if good:  # otherwise their NaN is seen
        assert np.isnan(gradient(a, tf.constant(x), kept)[1][0]).any()


def test_a_layer_keeps_samples_that_are_not_finite_out():
    from tfdeq.cells import DenseCell as Cell

    layer = tfdeq.DEQLayer(Cell(3), exclude_non_finite=True)
    x = np.random.default_rng(0).normal(size=(4, 2)).astype("float32")
    layer(x)
    clean = x[[0, 2, 3]]
    x[1] = np.nan

    def gradients(x, rows):
        with tf.GradientTape() as tape:
            solution = layer(x, training=True, return_solution=True)
            loss = tf.reduce_sum(tf.gather(solution.z, rows) ** 2)
        return solution, tape.gradient(loss, layer.trainable_variables)

    solution, found = gradients(x, [0, 2, 3])
    for one, other in zip(found, gradients(clean, [0, 1, 2])[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert solution.status[1] == Status.NON_FINITE
    assert float(layer.metrics[2].result()) < 1.0
    assert tfdeq.DEQLayer.from_config(layer.get_config()).exclude_non_finite
