"""Tests of tfdeq.numerics.arnoldi through tfdeq.spectral_radius, compared with numpy's eigenvalues."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode, linear_case, tanh_cell


def _orthogonal(random, size):
    return np.linalg.qr(random.normal(size=(size, size)))[0]


def _rotations(random, size):
    """Rotations of planes by different angles: size / 2 complex pairs with the same modulus."""
    matrix = np.zeros((size, size))
    for place in range(0, size, 2):
        cosine, sine = np.cos(angle := random.uniform(0, 2 * np.pi)), np.sin(angle)
        matrix[place : place + 2, place : place + 2] = [[cosine, -sine], [sine, cosine]]
    return matrix


def _symmetric(random, size):
    matrix = random.normal(size=(size, size))
    return (matrix + matrix.T) / np.sqrt(2 * size)


def _skew(random, size):
    matrix = random.normal(size=(size, size))
    return (matrix - matrix.T) / np.sqrt(2 * size)


def _complex_pair(random, size):
    """A dominant complex pair with modulus 0.9, not normal."""
    middle = np.diag(random.uniform(-0.6, 0.6, size))
    middle[:2, :2] = 0.9 * np.array([[0.6, -0.8], [0.8, 0.6]])
    basis = random.normal(size=(size, size)) + 2 * np.eye(size)
    return basis @ middle @ np.linalg.inv(basis)


CASES = {
    "random": lambda random, size: random.normal(size=(size, size)) / np.sqrt(size),
    "orthogonal": lambda random, size: 0.5 * _orthogonal(random, size),
    "rotations": lambda random, size: 1.2 * _rotations(random, size),
    "shift": lambda _, size: 1.2 * np.roll(np.eye(size), 1, axis=0),
    "symmetric": _symmetric,
    "skew": _skew,
    "complex pair": _complex_pair,
    "jordan blocks": lambda _, size: np.kron(np.eye(size // 2), [[0.9, 1.0], [0.0, 0.9]]),
    "rank one": lambda random, size: np.outer(*random.normal(size=(2, size))),
    "zero": lambda _, size: np.zeros((size, size)),
    "huge": lambda random, size: 1e25 * random.normal(size=(size, size)),
    "tiny": lambda random, size: 1e-25 * random.normal(size=(size, size)),
}


def _radius(matrices, mode="graph", dtype="float32", **settings):
    """Returns radius and error of each matrix [n, n], which is the Jacobian of a sample."""
    matrices = tf.constant(np.stack(matrices).astype(dtype))
    radius, error = in_mode(
        lambda z, a: tfdeq.spectral_radius(
            lambda z, a: tf.linalg.matvec(a, z), z, a, seed=[1, 2], return_error=True, **settings
        ),
        mode,
    )(tf.zeros(matrices.shape[:2], dtype), matrices)
    return radius.numpy(), error.numpy()


def _exact(matrices):
    matrices = [matrix.astype("float32").astype("float64") for matrix in matrices]
    return np.array([np.abs(np.linalg.eigvals(matrix)).max() for matrix in matrices])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", fast([8, 200], [2, 8, 30, 100, 200]))
def test_radius_and_its_error(size, mode):
    matrices = [make(np.random.default_rng(size), size) for make in CASES.values()]
    exact = _exact(matrices)
    radius, error = _radius(matrices, mode)
    # The worst case is random matrices of size 200, whose eigenvalues fill a disk.
    assert (radius >= 0.95 * exact).all()
    assert (radius <= 1.05 * exact).all()
    # An estimate, and float32's rounding.
    assert (np.abs(radius - exact) <= error + 1e-5 * exact).all()
    if size <= 30:
        # The Krylov space is the whole space; Jordan blocks of size two lose half of the digits.
        blocks = np.array([kind == "jordan blocks" for kind in CASES])
        np.testing.assert_allclose(radius, exact, rtol=1e-3)
        np.testing.assert_allclose(radius[~blocks], exact[~blocks], rtol=2e-4)


NORMAL = ("orthogonal", "rotations", "shift", "symmetric", "skew")


@pytest.mark.parametrize("steps", fast([45], [30, 45, 200]))
def test_many_eigenvalues_of_one_modulus(steps):
    """More than the space has vectors, so the growth over the later half of the steps is used."""
    matrices = [CASES[kind](np.random.default_rng(0), 200) for kind in NORMAL]
    np.testing.assert_allclose(_radius(matrices, steps=steps)[0], _exact(matrices), rtol=1e-3)


@pytest.mark.parametrize("steps", fast([1], [1, 2, 5, 12]))
def test_few_steps_of_an_orthogonal_matrix_are_enough(steps):
    """In each step its growth equals its radius."""
    matrices = [0.5 * _orthogonal(np.random.default_rng(seed), 100) for seed in range(4)]
    np.testing.assert_allclose(_radius(matrices, steps=steps)[0], 0.5, rtol=1e-5)


def test_a_shift_that_ends_in_zeros_seems_to_keep_what_it_keeps_for_all_steps():
    """A nilpotent matrix of radius 0: exact if the steps reach the size, else its growth, almost 1."""
    radius, error = _radius([np.diag(np.ones(7), 1)], dtype="float64")
    # The eigenvalues of a Jordan block of size 8 change by the eighth root of the rounding: 0.01.
    assert radius < 0.02
    assert error > 1e-3
    radius, error = _radius([np.diag(np.ones(199), 1)])
    np.testing.assert_allclose(radius, 1.0, rtol=0.02)
    assert error > 0.1


def test_samples_of_their_own_and_an_empty_batch():
    scale = tf.constant([[0.5], [0.0], [-0.75], [3.0]])
    radius = tfdeq.spectral_radius(lambda z, s: s * z, tf.ones([4, 5]), (scale,), steps=7)
    np.testing.assert_allclose(radius, [0.5, 0.0, 0.75, 3.0], rtol=1e-6)
    assert tfdeq.spectral_radius(lambda z: 2.0 * z, tf.ones([0, 5])).shape == [0]


@pytest.mark.parametrize("mode", MODES)
def test_batch_of_unknown_size_and_a_sample_that_is_not_finite(mode):
    matrix = tf.constant(CASES["orthogonal"](np.random.default_rng(0), 12), tf.float32)
    function = in_mode(
        lambda z: tfdeq.spectral_radius(lambda z: tf.tanh(z) @ matrix, z, seed=[1, 2]), mode
    )
    if mode != "eager":
        function = function.get_concrete_function(tf.TensorSpec([None, 12]))
    z = tf.constant([[0.0] * 12, [np.nan] * 12, [0.0] * 12])
    np.testing.assert_allclose(function(z), [0.5, np.nan, 0.5], rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", fast(["float16"], ["float16", "bfloat16"]))
def test_half_precision(dtype, mode):
    """Products in half precision, everything else in float32."""
    matrix = tf.constant(CASES["orthogonal"](np.random.default_rng(0), 64), dtype)
    exact = np.abs(np.linalg.eigvals(matrix.numpy().astype("float64"))).max()
    radius, error = in_mode(
        lambda z: tfdeq.spectral_radius(lambda z: z @ matrix, z, seed=[1, 2], return_error=True),
        mode,
    )(tf.zeros([2, 64], dtype))
    assert radius.dtype == error.dtype == tf.float32
    # A product's rounding: 2^−8 in bfloat16.
    np.testing.assert_allclose(radius, exact, rtol=2**-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", fast(["complex"], ["real", "complex"]))
def test_against_exact_eigenvalues(kind, mode):
    """A cell with another Jacobian for each sample, diag(1 − tanh²) A."""
    random = np.random.default_rng(2)
    rotation = 0.9 * np.array([[0.6, -0.8], [0.8, 0.6]])
    dominant = np.diag([0.9, 0.3]) if kind == "real" else rotation
    middle = np.zeros((6, 6))
    middle[:2, :2] = dominant
    middle[2:, 2:] = 0.2 * random.normal(size=(4, 4)) / 2
    basis = np.linalg.qr(random.normal(size=(6, 6)))[0]
    a = basis @ middle @ basis.T
    z, x = 0.2 * random.normal(size=(3, 6)), 0.2 * random.normal(size=(3, 6))
    args = (tf.constant(a), tf.constant(x))
    received = in_mode(
        lambda: tfdeq.spectral_radius(tanh_cell, tf.constant(z), args, steps=60, seed=[1, 2]), mode
    )()
    jacobians = (1 - np.tanh(z @ a + x) ** 2)[:, None, :] * a[None]
    expected = np.abs(np.linalg.eigvals(jacobians)).max(axis=1)
    # The third eigenvalue is below 0.6 times the first, and 0.6^60 is below float64's precision.
    np.testing.assert_allclose(received, expected, rtol=1e-8)


def test_nest_and_constant():
    z = {"p": tf.ones([2, 3]), "q": tf.ones([2, 1, 2])}
    f = lambda z, s: {"p": s * z["p"], "q": 0.25 * z["q"]}  # noqa: E731
    scale = tf.constant([[0.5], [-0.75]])
    received = tfdeq.spectral_radius(f, z, (scale,), steps=40)
    np.testing.assert_allclose(received, [0.5, 0.75], rtol=1e-5)
    constant = tfdeq.spectral_radius(lambda z: tf.ones_like(z), tf.zeros([2, 3]))
    np.testing.assert_array_equal(constant, [0.0, 0.0])


def test_half_precision_of_a_multiple():
    for dtype in (tf.float16, tf.bfloat16):
        z = tf.ones([2, 3], dtype)
        received = tfdeq.spectral_radius(lambda z: tf.cast(0.5, z.dtype) * z, z)
        # bfloat16 has eight bits.
        np.testing.assert_allclose(tf.cast(received, tf.float32), [0.5, 0.5], rtol=2**-6)


def test_carries_no_gradient_and_checks_its_steps():
    a, x = map(tf.constant, linear_case(batch=3, size=4, radius=0.9))
    z = tf.ones_like(x)
    with tf.GradientTape() as tape:
        tape.watch([a, x])
        radius = tf.reduce_sum(tfdeq.spectral_radius(tanh_cell, z, (a, x)))
    assert tape.gradient(radius, [a, x]) == [None, None]
    with pytest.raises(ValueError, match="steps must be an integer of at least 1; received 0"):
        tfdeq.spectral_radius(tanh_cell, z, (a, x), steps=0)
