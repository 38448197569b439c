"""Tests of tfdeq.spectral_norm: a nearly sharp bound, compared with numpy's singular values."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode
from tfdeq.spectral_norm import scaled_to_norm


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 64), (300, 20)])
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e6, 1e30])
def test_bound_is_above_and_near(shape, scale, mode):
    matrix = scale * np.random.default_rng(0).normal(size=shape).astype("float32")
    exact = np.linalg.norm(matrix.astype("float64"), 2)
    bound = float(in_mode(tfdeq.spectral_norm_bound, mode)(tf.constant(matrix)))
    assert exact <= bound <= exact * 1.0001 * min(shape) ** (1 / 256)


def test_all_singular_values_equal_is_the_worst_case():
    bound = float(tfdeq.spectral_norm_bound(3.0 * tf.eye(256)))
    np.testing.assert_allclose(bound, 3.0 * 256 ** (1 / 256), rtol=1e-4)


def test_zero_matrix_and_half_precision():
    assert 0.0 <= float(tfdeq.spectral_norm_bound(tf.zeros([4, 3]))) < 1e-6
    assert tfdeq.spectral_norm_bound(tf.eye(4, dtype=tf.bfloat16)).dtype == tf.float32


def test_gradient_is_that_of_the_largest_singular_value():
    matrix = tf.constant(np.diag([3.0, 1.0, 0.5]))
    with tf.GradientTape() as tape:
        tape.watch(matrix)
        bound = tfdeq.spectral_norm_bound(matrix)
    np.testing.assert_allclose(tape.gradient(bound, matrix), np.diag([1.0, 0, 0]), atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(4, 4), (3, 7)])
def test_gradient_at_zero_is_zero(shape, mode):
    def gradient(matrix):
        with tf.GradientTape() as tape:
            tape.watch(matrix)
            bound = tfdeq.spectral_norm_bound(matrix)
        return bound, tape.gradient(bound, matrix)

    bound, found = in_mode(gradient, mode)(tf.zeros(shape))
    assert float(bound) == 0.0
    np.testing.assert_array_equal(found, np.zeros(shape))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e30])
def test_gradient_does_not_depend_on_the_scale(scale):
    """The bound is homogeneous of degree 1, so its gradient is the same at any scale."""
    matrix = tf.random.stateless_normal([5, 7], [1, 2])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(matrix)
        one, other = (tfdeq.spectral_norm_bound(s * matrix) / s for s in (1.0, scale))
    expected = tape.gradient(one, matrix)
    np.testing.assert_allclose(tape.gradient(other, matrix), expected, rtol=1e-4, atol=1e-5)


def test_only_matrices():
    with pytest.raises(ValueError, match=r"takes a matrix; received shape \(2, 3, 4\)"):
        tfdeq.spectral_norm_bound(tf.zeros([2, 3, 4]))


def test_constraint_holds_while_a_layer_trains():
    """The target requires large weights, but the bound holds after every update."""
    layer = keras.layers.Dense(4, use_bias=False, kernel_constraint=tfdeq.SpectralNorm(0.7))
    model = keras.Sequential([keras.Input([4]), layer])
    model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    norms = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: norms.append(np.linalg.norm(layer.kernel.numpy(), 2))
    )
    model.fit(x, 5 * x, epochs=3, verbose=0, callbacks=[callback])
    assert max(norms) <= 0.7
    assert norms[-1] > 0.65


def test_constraint_leaves_small_weights_and_takes_kernels_of_convolutions():
    constraint = tfdeq.SpectralNorm(1.0)
    small = tf.constant([[0.5, 0.0], [0.0, 0.1]])
    np.testing.assert_array_equal(constraint(small), small)
    kernel = constraint(tf.random.stateless_normal([3, 3, 4, 5], [0, 1]))
    assert np.linalg.norm(tf.reshape(kernel, [-1, 5]), 2) <= 1.0
    again = keras.constraints.deserialize(keras.constraints.serialize(constraint))
    assert again.bound == 1.0
    with pytest.raises(ValueError, match="bound must be a finite number greater than 0"):
        tfdeq.SpectralNorm(0.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_constraint_holds_for_the_weight_as_it_is_stored(dtype):
    for seed in range(5):
        weight = tf.random.stateless_normal([8, 8], [seed, 1])
        kept = tfdeq.SpectralNorm(0.999)(tf.cast(weight, dtype))
        assert kept.dtype == dtype
        assert 0.97 < np.linalg.norm(kept.numpy().astype("float64"), 2) <= 0.999


def _worst_case_matrices():
    """Matrices of many sizes: with one dominant singular value, with equal ones, with signs."""
    random = np.random.default_rng(0)
    for size in (1, 2, 3, 8, 64):
        orthogonal = np.linalg.qr(random.normal(size=(size, size)))[0]
        yield from (orthogonal, 7 * orthogonal, 0.99995 * orthogonal)
        yield from (random.normal(size=(size, size)), np.abs(random.normal(size=(size, size))))
        yield np.outer(random.normal(size=size), random.normal(size=size))
        yield 1.004 * np.ones((size, size)) / size
    yield random.normal(size=(5, 40))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "dtype", fast(["float16", "float32", "float64"], ["float16", "bfloat16", "float32", "float64"])
)
@pytest.mark.parametrize("bound", fast([0.9999], [0.9, 0.99, 0.9999]))
def test_scaled_to_norm_bounds_the_rounded_matrix(bound, dtype, mode):
    if mode == "xla":  # one compilation per shape
        matrices = [np.random.default_rng(seed).normal(size=(8, 8)) for seed in range(20)]
    else:
        matrices = _worst_case_matrices()
    source = "float64" if dtype == "float64" else "float32"
    scaled = in_mode(lambda matrix: scaled_to_norm(matrix, bound, dtype), mode)
    for matrix in matrices:
        kept = scaled(tf.constant(matrix.astype(source)))
        assert kept.dtype == dtype
        norm = np.linalg.norm(kept.numpy().astype("float64"), 2)
        # Not much smaller: √d roundings of half precision, and the excess of the bound.
        exact = np.linalg.norm(matrix, 2)
        slack = {"bfloat16": 2**-7, "float16": 2**-10}.get(dtype, 1e-4)
        assert (
            min(exact, bound) * min(matrix.shape) ** (-1 / 256) * (1 - slack) ** 2 <= norm <= bound
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-25, 1e25, 1e30])
def test_scaled_to_norm_of_tiny_and_huge_matrices(scale, dtype):
    matrix = scale * tf.random.stateless_normal([6, 6], [1, 2])
    with tf.GradientTape() as tape:
        tape.watch(matrix)
        kept = scaled_to_norm(matrix, 0.9, dtype)
    norm = np.linalg.norm(kept.numpy().astype("float64"), 2)
    assert norm <= 0.9
    if scale > 1:
        assert norm > 0.88
    assert np.isfinite(tape.gradient(kept, matrix)).all()


def test_rounding_that_adds_up_is_seen():
    """Here rounding to nearest increases every entry, so the safe bound is needed."""
    # Just above the middle between two bfloat16 numbers, divided by 8 for a norm of about one.
    matrix = np.full((8, 8), 0.99 * (1 + 2**-8 * 1.01) / 8, "float32")
    for bound in np.linspace(0.9, 0.99, 40):
        kept = scaled_to_norm(tf.constant(matrix), float(bound), "bfloat16").numpy()
        norm = np.linalg.norm(kept.astype("float64"), 2)
        assert bound * (1 - 2**-5) < norm <= bound
