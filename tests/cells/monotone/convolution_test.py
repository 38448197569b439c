"""Tests of tfdeq.cells.monotone.convolution: the operator as a matrix, and its guarantees."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.cells.monotone.circular_test import matrix_of
from tests.support.cases import MODES, fast, in_mode
from tfdeq.cells import MonotoneConvolution

SPLITTING = ("forward_backward", "peaceman_rachford")


def _layer(solver, filters=3, dtype="float64", **settings):
    keras.utils.set_random_seed(0)
    cell = MonotoneConvolution(filters, dtype=dtype, **{"recurrent_scale": 1.0, **settings})
    return tfdeq.DEQLayer(cell, solver, dtype=dtype)


def _images(rows=3, seed=0, shape=(4, 5, 2)):
    return np.random.default_rng(seed).normal(size=(rows, *shape))


@pytest.mark.parametrize("kernel_size", fast([3], [1, 3]))
def test_the_operator_is_strongly_monotone_and_its_constants_are_right(kernel_size):
    layer = _layer("peaceman_rachford", monotonicity=0.3, kernel_size=kernel_size)
    x = tf.constant(_images())
    layer(x)
    cell = layer.cell
    operator = np.eye(60) - matrix_of(cell.recurrent_kernel().numpy(), 4, 5)
    assert np.linalg.eigvalsh((operator + operator.T) / 2).min() >= 0.3 - 1e-12
    splitting = cell.splitting(cell.inject(x))
    norm = np.linalg.norm(operator, 2)
    assert norm <= splitting.lipschitz() <= 1.05 * norm
    v = _images(1, seed=1, shape=(4, 5, 3))
    found = splitting.resolvent(tf.constant(0.7, tf.float64))(tf.constant(v))
    expected = v.reshape(1, -1) @ np.linalg.inv(np.eye(60) + 0.7 * operator)
    np.testing.assert_allclose(found.numpy().ravel(), expected.ravel(), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPLITTING)
def test_a_thousand_starts_end_in_the_same_point(name):
    solver = tfdeq.solvers.get(name, max_steps=5000, tolerance=1e-6)
    layer = _layer(solver, filters=2, dtype="float32", monotonicity=0.5)
    random = np.random.default_rng(1)
    x = np.repeat(random.normal(size=(10, 3, 4, 2)), 100, axis=0).astype("float32")
    size = 10.0 ** random.uniform(-3, 3, size=(1000, 1, 1, 1))
    z0 = (size * random.normal(size=(1000, 3, 4, 2))).astype("float32")
    solution = tf.function(layer)(x, z0=z0, return_solution=True)
    assert solution.converged.numpy().all()
    groups = solution.z.numpy().reshape(10, 100, -1)
    apart = np.linalg.norm(groups - groups[:, :1], axis=-1)
    assert (apart <= 1e-5 * np.linalg.norm(groups, axis=-1)).all()


@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_the_closed_form(mode):
    layer = _layer(tfdeq.PeacemanRachford(5000, 1e-13))
    x = _images()
    layer.build(x.shape)
    weights = _images(seed=5, shape=(4, 5, 3))

    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = layer(x)
            loss = tf.reduce_sum(weights * z)
        return z, *tape.gradient(loss, [x, layer.cell.injection.bias.value])

    z, d_x, d_b = in_mode(gradients, mode)(tf.constant(x))
    w = matrix_of(layer.cell.recurrent_kernel().numpy(), 4, 5)
    u = matrix_of(layer.cell.injection.kernel.numpy(), 4, 5)
    active = (z.numpy() > 0).reshape(3, -1).astype(float)
    g = np.stack(
        [
            np.linalg.solve(np.eye(60) - w * d, row) * d
            for row, d in zip(weights.reshape(3, -1), active, strict=True)
        ]
    )
    np.testing.assert_allclose(d_x.numpy().reshape(3, -1), g @ u.T, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(d_b, g.reshape(-1, 3).sum(axis=0), rtol=1e-8, atol=1e-9)


@pytest.mark.slow
def test_images_of_any_size():
    """One graph for unknown sizes gives the same answers as graphs for known sizes."""
    layer = _layer(tfdeq.PeacemanRachford(500, 1e-10))
    spec = tf.TensorSpec([None, None, None, 2], tf.float64)
    compiled = tf.function(layer, input_signature=[spec])
    for shape in ((4, 5, 2), (6, 3, 2), (1, 1, 2)):
        x = tf.constant(_images(shape=shape))
        known = tf.function(layer)(x)
        np.testing.assert_allclose(compiled(x), known, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filters": 0}, "filters must be an integer of at least 1; received 0"),
        ({"kernel_size": 4}, "kernel_size must be odd; received 4"),
        (
            {"monotonicity": -1.0},
            "monotonicity must be a finite number greater than 0; received -1.0",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MonotoneConvolution(**{"filters": 2, **settings})


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match=r"takes images .* received shape \(3, 4\)"):
        MonotoneConvolution(2).inject(tf.ones([3, 4]))
