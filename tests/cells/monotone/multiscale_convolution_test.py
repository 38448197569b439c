"""Tests of tfdeq.cells.monotone.multiscale_convolution: the operator as a matrix, and its guarantees."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.cells.monotone.circular_test import matrix_of
from tests.support.cases import MODES, fast, in_mode
from tfdeq.cells import MonotoneConvolution, MonotoneMultiscaleConvolution

SPLITTING = ("forward_backward", "peaceman_rachford")
M = 0.3


def _layer(solver, filters=(2, 3), dtype="float64", **settings):
    keras.utils.set_random_seed(0)
    settings = {"recurrent_scale": 1.0, "monotonicity": M, **settings}
    cell = MonotoneMultiscaleConvolution(filters, dtype=dtype, **settings)
    return tfdeq.DEQLayer(cell, solver, dtype=dtype)


def _images(rows=3, seed=0, shape=(4, 6, 2)):
    return np.random.default_rng(seed).normal(size=(rows, *shape))


def _flat(z):
    """Branches [B, ...] -> [B, D]."""
    return np.concatenate([np.reshape(branch, (len(branch), -1)) for branch in z], axis=1)


def _branches(flat, like):
    sizes = np.cumsum([np.prod(branch.shape[1:]) for branch in like])[:-1]
    parts = np.split(flat, sizes, axis=1)
    return [
        tf.constant(part.reshape(-1, *branch.shape[1:]))
        for part, branch in zip(parts, like, strict=True)
    ]


def _matrices(cell, rows, columns):
    """Returns A and B of flattened states, from the weights alone: rows are multiplied from the right."""
    places = [(rows // 2**t, columns // 2**t) for t in range(len(cell.filters))]
    blocks = [height * width * c for (height, width), c in zip(places, cell.filters, strict=True)]
    ends = np.cumsum([0, *blocks])
    parts = [slice(one, other) for one, other in itertools.pairwise(ends)]
    a, b = np.zeros((2, ends[-1], ends[-1]))
    for t, (part, size) in enumerate(zip(parts, places, strict=True)):
        a[part, part] = matrix_of(cell.symmetric[t].kernel.numpy(), *size)
        b[part, part] = matrix_of(cell.skew[t].kernel.numpy(), *size)
        if t:
            kernel = cell.down[t - 1].kernel.numpy()
            a[parts[t - 1], part] = matrix_of(kernel, *places[t - 1], stride=2)
    return a, b


def recurrent_matrix(cell, rows, columns):
    """Returns W of flattened states, by which they are multiplied from the right."""
    a, b = _matrices(cell, rows, columns)
    return (1 - cell.monotonicity) * np.eye(len(a)) - a @ a.T + b - b.T


def _applied_to_the_identity(cell, x):
    """Returns the matrix of the affine part, and what it adds [1, D], by applying it."""
    x = tf.constant(x[:1])
    affine, like = cell.splitting(cell.inject(x)).affine, cell.initial_state(x)
    size = sum(int(np.prod(branch.shape[1:])) for branch in like)
    constant = _flat(affine(_branches(np.zeros((1, size)), like)))
    return _flat(affine(_branches(np.eye(size), like))) - constant, constant


CASES = [
    ({}, (4, 6)),
    ({"filters": (1, 2, 2)}, (4, 8)),
    ({"filters": (3,)}, (3, 4)),
    ({"kernel_size": 1}, (4, 6)),
    ({"filters": (1, 2, 1), "kernel_size": 5}, (8, 4)),
]


@pytest.mark.parametrize(("settings", "size"), fast(CASES[:2], CASES))
def test_the_operator_is_that_of_the_paper_and_its_constants_are_right(settings, size):
    layer = _layer("peaceman_rachford", **settings)
    x = _images(shape=(*size, 2))
    layer.build(x.shape)
    cell = layer.cell
    w = recurrent_matrix(cell, *size)
    found, _ = _applied_to_the_identity(cell, x)
    np.testing.assert_allclose(found, w, atol=1e-12)
    operator = np.eye(len(w)) - w
    symmetric = (operator + operator.T) / 2
    assert np.linalg.eigvalsh(symmetric).min() >= M - 1e-12
    splitting = cell.splitting(cell.inject(tf.constant(x)))
    norm = np.linalg.norm(operator, 2)
    assert norm <= splitting.lipschitz() <= 1.05 * norm
    # 1/β is the square of the norm of M C^(−T), C Cᵀ the symmetric part.
    scaled = np.linalg.solve(np.linalg.cholesky(symmetric), operator.T)
    beta = np.linalg.norm(scaled, 2) ** -2
    assert 0.9 * beta <= splitting.cocoercivity() <= beta * (1 + 1e-12)
    v = np.random.default_rng(1).normal(size=(2, len(w)))
    like = cell.initial_state(x)
    moved = splitting.resolvent(tf.constant(0.7, tf.float64))(_branches(v, like))
    expected = v @ np.linalg.inv(np.eye(len(w)) + 0.7 * operator)
    np.testing.assert_allclose(_flat(moved), expected, atol=1e-12)


def test_one_branch_is_a_monotone_convolution():
    layer = _layer("peaceman_rachford", filters=(3,))
    x = _images()
    (z,) = tf.function(layer)(x)
    cell = MonotoneConvolution(3, monotonicity=M, dtype="float64")
    other = tfdeq.DEQLayer(cell, "peaceman_rachford", dtype="float64")
    other.build(x.shape)
    for name in ("symmetric", "skew", "injection"):
        part = getattr(layer.cell, name)
        part = part if name == "injection" else part[0]
        getattr(cell, name).kernel.assign(part.kernel)
    np.testing.assert_allclose(tf.function(other)(x), z, rtol=1e-9, atol=1e-12)


def test_the_image_and_each_bias_reach_their_branches():
    layer = _layer("peaceman_rachford")
    x = _images()
    layer.build(x.shape)
    for place, bias in enumerate(layer.cell.bias):
        bias.assign(np.arange(1.0, 1 + layer.cell.filters[place]))
    _, constant = _applied_to_the_identity(layer.cell, x)
    u = matrix_of(layer.cell.injection.kernel.numpy(), 4, 6)
    first = x[:1].reshape(1, -1) @ u + np.tile([1.0, 2.0], 24)
    expected = np.concatenate([first, np.tile([1.0, 2.0, 3.0], 6)[None]], axis=1)
    np.testing.assert_allclose(constant, expected, atol=1e-12)


@pytest.mark.parametrize("name", fast(SPLITTING[1:], SPLITTING))
def test_far_starts_end_in_the_same_point(name):
    """Also where plain iteration diverges."""
    layer = _layer(tfdeq.solvers.get(name, max_steps=5000, tolerance=1e-11))
    x = np.repeat(_images(2), 20, axis=0)
    layer.build(x.shape)
    assert np.abs(np.linalg.eigvals(recurrent_matrix(layer.cell, 4, 6))).max() > 1.5
    random = np.random.default_rng(1)
    size = 10.0 ** random.uniform(-3, 3, size=(40, 1))
    start = size * random.normal(size=(40, 24 * 2 + 6 * 3))
    z0 = _branches(start, layer.cell.initial_state(x))
    solution = tf.function(layer)(x, z0=z0, return_solution=True)
    assert solution.converged.numpy().all()
    groups = _flat(solution.z).reshape(2, 20, -1)
    apart = np.linalg.norm(groups - groups[:, :1], axis=-1)
    # The residual is 1e-11, and ‖(I − W)^(-1)‖ <= 1 / m.
    assert (apart <= 1e-9 * np.linalg.norm(groups, axis=-1)).all()
    broyden = tfdeq.DEQLayer(layer.cell, tfdeq.Broyden(400, 1e-11), dtype="float64")
    expected = tf.function(broyden)(x[::20])
    np.testing.assert_allclose(groups[:, 0], _flat(expected), rtol=1e-7, atol=1e-9)


def test_the_equilibrium_is_lipschitz_with_the_constant_of_the_theorem():
    layer = _layer(tfdeq.PeacemanRachford(2000, 1e-12))
    x, y = _images(20), _images(20, seed=1)
    one, other = np.split(_flat(tf.function(layer)(np.concatenate([x, y]))), 2)
    moved = np.linalg.norm(one - other, axis=1)
    norm = np.linalg.norm(matrix_of(layer.cell.injection.kernel.numpy(), 4, 6), 2)
    assert (moved <= norm / M * np.linalg.norm((x - y).reshape(20, -1), axis=1)).all()


@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_the_closed_form(mode):
    layer = _layer(tfdeq.PeacemanRachford(5000, 1e-13))
    x = _images()
    layer.build(x.shape)
    weights = np.random.default_rng(5).normal(size=(3, 24 * 2 + 6 * 3))
    cell = layer.cell

    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = layer(x)
            flat = tf.concat([tf.reshape(branch, [3, -1]) for branch in z], axis=1)
            loss = tf.reduce_sum(weights * flat)
        return z, *tape.gradient(loss, [x, cell.bias[1].value, cell.down[0].kernel.value])

    z, d_x, d_b, d_k = in_mode(gradients, mode)(tf.constant(x))
    w, (a, _) = recurrent_matrix(cell, 4, 6), _matrices(cell, 4, 6)
    u = matrix_of(cell.injection.kernel.numpy(), 4, 6)
    z = _flat(z)
    active = (z > 0).astype(float)
    identity = np.eye(len(w))
    g = np.stack(
        [np.linalg.solve(identity - w * d, row) * d for row, d in zip(weights, active, strict=True)]
    )
    np.testing.assert_allclose(d_x.numpy().reshape(3, -1), g[:, :48] @ u.T, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(d_b, g[:, 48:].reshape(-1, 3).sum(axis=0), rtol=1e-8, atol=1e-9)
    # Of −z A Aᵀ gᵀ by A, in the block of the stride, which each entry of the kernel is in many times.
    d_a = -(z.T @ (g @ a) + g.T @ (z @ a))[:48, 48:]
    kernel = np.zeros((3, 3, 2, 3))
    for index in np.ndindex(kernel.shape):
        kernel[index] = 1.0
        expected = np.sum(d_a * matrix_of(kernel, 4, 6, stride=2))
        np.testing.assert_allclose(d_k[index], expected, rtol=1e-8, atol=1e-9)
        kernel[index] = 0.0


def test_gradients_of_all_weights_are_finite_differences():
    layer = _layer(tfdeq.PeacemanRachford(5000, 1e-13))
    x = _images()
    layer.build(x.shape)
    compiled = tf.function(lambda: tf.add_n([tf.reduce_sum(b**2) for b in layer(x)]))
    with tf.GradientTape() as tape:
        loss = compiled()
    weights = layer.trainable_variables
    assert len(weights) == 2 + 1 + 2 + 1 + 2
    slopes = tape.gradient(loss, [weight.value for weight in weights])
    random, step = np.random.default_rng(0), 1e-6
    for weight, slope in zip(weights, slopes, strict=True):
        before, change = weight.numpy(), random.normal(size=weight.shape)
        values = []
        for sign in (1, -1):
            weight.assign(before + sign * step * change)
            values.append(float(compiled()))
        weight.assign(before)
        # The values are about 100, exact to 1e-11 or so, and divided by 2e-6.
        difference = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(slope * change), difference, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_rounded_weights_keep_the_monotonicity(dtype):
    layer = _layer("peaceman_rachford", dtype=dtype)
    x = _images().astype("float32")
    z = tf.function(layer)(x)
    assert [branch.dtype.name for branch in z] == [dtype.removeprefix("mixed_")] * 2
    parts = layer.cell.exact_parts(tf.constant(x))
    symmetric = (parts.operator + tf.linalg.matrix_transpose(parts.operator)) / 2
    assert np.linalg.eigvalsh(symmetric).min() >= M - 1e-12


@pytest.mark.slow
def test_images_of_any_size():
    """One graph for unknown sizes gives the same answers as graphs for known sizes."""
    layer = _layer(tfdeq.PeacemanRachford(500, 1e-10))
    spec = tf.TensorSpec([None, None, None, 2], tf.float64)
    compiled = tf.function(layer, input_signature=[spec])
    for shape in ((4, 6, 2), (6, 2, 2), (2, 2, 2)):
        x = tf.constant(_images(shape=shape))
        for one, other in zip(compiled(x), tf.function(layer)(x), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filters": ()}, "filters must have one entry for each branch; received none"),
        ({"filters": (2, 0)}, "filters must be an integer of at least 1; received 0"),
        ({"kernel_size": 4}, "kernel_size must be odd; received 4"),
        (
            {"monotonicity": 0.0},
            "monotonicity must be a finite number greater than 0; received 0.0",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MonotoneMultiscaleConvolution(**settings)


@pytest.mark.parametrize("shape", [(3, 4), (1, 6, 5, 2), (1, 5, 6, 2)])
def test_images_that_cannot_be_halved_are_refused(shape):
    layer = tfdeq.DEQLayer(MonotoneMultiscaleConvolution((2, 3)))
    message = "multiples of 2, for its 2 branches; received shape .*ZeroPadding2D"
    with pytest.raises(ValueError, match=message):
        layer(tf.ones(shape))
