"""Tests of tfdeq.cells.dense: the guarantee that a contraction factor gives."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode
from tfdeq.cells import DenseCell

LARGE = keras.initializers.RandomNormal(stddev=20.0, seed=1)


def _layer(contraction, activation="tanh", initializer=LARGE, **solver):
    cell = DenseCell(
        6,
        activation=activation,
        contraction=contraction,
        recurrent_initializer=initializer,
        dtype="float64",
    )
    return tfdeq.DEQLayer(cell, tfdeq.FixedPointIteration(**solver), dtype="float64")


def _input(rows=3, scale=1.0):
    return scale * np.random.default_rng(0).normal(size=(rows, 4))


@pytest.mark.parametrize(
    "activation", fast(["tanh", "relu"], ["tanh", "relu", "linear", "sigmoid"])
)
@pytest.mark.parametrize("contraction", fast([0.95], [0.5, 0.95]))
def test_weights_of_any_size_converge_at_the_promised_rate(contraction, activation):
    """‖z_k − z*‖ <= γ^k ‖z_0 − z*‖, from every start, to the same z*."""
    steps = math.ceil(math.log(1e-12) / math.log(contraction)) + 2
    layer = _layer(contraction, activation, max_steps=steps, tolerance=1e-15)
    x = _input()
    exact = layer(x).numpy()
    for start in (0.0, 30.0):
        z0 = tf.fill([3, 6], tf.constant(start, tf.float64))
        for number in (1, 2, 5, 10):
            error = np.linalg.norm(layer(x, z0=z0, explicit_steps=number) - exact, axis=1)
            limit = contraction**number * np.linalg.norm(z0 - exact, axis=1)
            assert (error <= limit + 1e-9 * np.linalg.norm(exact)).all()


def test_the_same_weights_without_the_factor_do_not_converge():
    layer = _layer(None, "relu", max_steps=60, tolerance=1e-6)
    assert not layer(_input(), return_solution=True).converged.numpy().any()


def test_small_weights_are_left_alone():
    free, bounded = (
        _layer(c, initializer=keras.initializers.Orthogonal(0.3, seed=2), tolerance=1e-12)
        for c in (None, 0.9)
    )
    bounded(_input()), free(_input())
    bounded.set_weights(free.get_weights())
    np.testing.assert_allclose(bounded(_input()), free(_input()), rtol=1e-10)


def test_gradient_against_finite_differences_through_the_bound():
    layer = _layer(0.8, max_steps=200, tolerance=1e-14)
    x = _input()
    weight = next(v for v in (layer(x), layer.trainable_variables)[1] if "recurrent" in v.path)

    def loss():
        return tf.reduce_sum(layer(x) ** 2)

    with tf.GradientTape() as tape:
        value = loss()
    gradient = tape.gradient(value, weight.value).numpy()
    direction = np.random.default_rng(1).normal(size=gradient.shape)
    kept, step = weight.numpy(), 1e-4
    values = []
    for sign in (1, -1):
        weight.assign(kept + sign * step * direction)
        values.append(float(loss()))
    np.testing.assert_allclose(
        (values[0] - values[1]) / (2 * step), np.sum(gradient * direction), rtol=1e-5
    )


def test_sequences_and_settings():
    layer = tfdeq.DEQLayer(DenseCell(6, normalization="spectral"))
    assert layer(np.zeros([2, 5, 4], "float32")).shape == [2, 5, 6]
    with pytest.raises(
        ValueError, match=r"contraction must be None or between 0 and 1; received 1"
    ):
        DenseCell(6, contraction=1.0)
    with pytest.raises(ValueError, match="must be one that does not expand: linear, tanh.*'gelu'"):
        DenseCell(6, activation="gelu", contraction=0.9)
    with pytest.raises(ValueError, match="must be one that does not expand"):
        DenseCell(6, activation=lambda z: 3.0 * z, contraction=0.9)


class _Recording(DenseCell):
    """Records the kernel that an application uses."""

    def call(self, z, x):
        self.used = x["kernel"][0]
        return super().call(z, x)


@pytest.mark.parametrize(
    "policy",
    fast(["mixed_float16", "float32"], ["mixed_bfloat16", "mixed_float16", "float32", "float64"]),
)
@pytest.mark.parametrize("contraction", fast([0.9999], [0.9, 0.99, 0.9999]))
def test_the_kernel_that_is_used_is_bounded(contraction, policy):
    for seed in range(4):
        initializer = keras.initializers.RandomNormal(stddev=3.0, seed=seed)
        cell = _Recording(
            8, contraction=contraction, recurrent_initializer=initializer, dtype=policy
        )
        layer = tfdeq.DEQLayer(cell, tfdeq.FixedPointIteration(max_steps=3), dtype=policy)
        layer(np.ones([2, 3], "float32"))
        layer(np.ones([2, 3], "float32"))  # now that it is built, with its values
        assert cell.used.dtype == cell.compute_dtype
        norm = np.linalg.norm(cell.used.numpy().astype("float64"), 2)
        assert 0.97 * contraction < norm <= contraction


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "policy", fast(["mixed_float16"], ["mixed_bfloat16", "mixed_float16", "float32"])
)
@pytest.mark.parametrize("normalization", fast([None], [None, "weight"]))
def test_a_zero_matrix_has_a_finite_gradient_and_learns(normalization, policy, mode):
    cell = DenseCell(
        4,
        contraction=0.9,
        normalization=normalization,
        recurrent_initializer="zeros",
        dtype=policy,
    )
    layer = tfdeq.DEQLayer(cell, dtype=policy)
    x = tf.ones([2, 3])
    layer(x)

    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(layer(x), tf.float32) ** 2)
        return tape.gradient(loss, [v.value for v in layer.trainable_variables])

    found = in_mode(gradients, mode)()
    assert all(np.isfinite(gradient).all() for gradient in found)
    # With W = 0, z W = 0, but the gradient of the kernel, or of its gains, is not zero.
    names = [v.path for v in layer.trainable_variables]
    kernel = next(
        g
        for n, g in zip(names, found, strict=True)
        if n.endswith(("recurrent/kernel", "recurrent/gain"))
    )
    assert np.abs(kernel).max() > 0
