"""Tests of tfdeq.regularizers."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.cases import MODES, in_mode, linear_case, tanh_cell


def _exact(z, a, x):
    """‖∂f/∂z‖_F² / (B D) from the whole Jacobian."""
    with tf.GradientTape() as tape:
        tape.watch(z)
        f_z = tanh_cell(z, a, x)
    jacobian = tape.batch_jacobian(f_z, z)
    return float(tf.reduce_sum(jacobian**2) / tf.size(z, tf.int32).numpy())


def _case():
    a, x = map(tf.constant, linear_case(batch=3, size=4, radius=0.9))
    return tf.constant(np.random.default_rng(1).normal(size=(3, 4))), a, x


@pytest.mark.parametrize("mode", MODES)
def test_unbiased(mode):
    """The mean over many probes, within four of its own standard errors of the exact value."""
    z, a, x = _case()
    estimate = in_mode(
        lambda seed: tfdeq.jacobian_penalty(tanh_cell, z, (a, x), probes=10, seed=seed), mode
    )
    samples = np.array([float(estimate(tf.constant([3, 1000 * i]))) for i in range(100)])
    error = samples.std() / np.sqrt(len(samples))
    assert abs(samples.mean() - _exact(z, a, x)) < 4 * error
    assert error < 0.03 * samples.mean()


def test_probes_are_averaged_and_lower_the_variance():
    z, a, x = _case()

    def spread(probes):
        penalty = in_mode(
            lambda seed: tfdeq.jacobian_penalty(tanh_cell, z, (a, x), probes, seed=seed), "graph"
        )
        return np.std([float(penalty(tf.constant([probes, 1000 * i]))) for i in range(60)])

    # √16 = 4; the standard deviation of 60 values is known to about 10 %.
    assert 2.5 < spread(1) / spread(16) < 6.0


@pytest.mark.parametrize("mode", MODES)
def test_noise_is_fresh_unless_seeded(mode):
    z, a, x = _case()
    fresh = in_mode(lambda: tfdeq.jacobian_penalty(tanh_cell, z, (a, x)), mode)
    seeded = in_mode(lambda s: tfdeq.jacobian_penalty(tanh_cell, z, (a, x), seed=s), mode)
    # Signs of 12 elements, up to one for each sample: two draws in 512 may meet.
    assert len({float(fresh()) for _ in range(5)}) > 2
    one, other = tf.constant([1, 2]), tf.constant([1, 3])
    assert float(seeded(one)) == float(seeded(one))
    assert float(seeded(one)) != float(seeded(other))


@pytest.mark.parametrize("mode", MODES)
def test_gradient_against_finite_differences(mode):
    z, a, x = _case()
    direction = tf.constant(np.random.default_rng(2).normal(size=(4, 4)))

    def value(t):
        return tfdeq.jacobian_penalty(tanh_cell, z, (a + t * direction, x + t), 2, seed=[5, 6])

    def derivative(t):
        with tf.GradientTape() as tape:
            tape.watch(t)
            result = value(t)
        return tape.gradient(result, t)

    h = 1e-4
    zero = tf.zeros([], tf.float64)
    # The same seed makes other noise under XLA (stateless_normal chooses another generator there).
    value_in_mode = in_mode(value, mode)
    low2, low1, high1, high2 = (value_in_mode(zero + step * h) for step in (-2, -1, 1, 2))
    difference = (8 * (high1 - low1) - (high2 - low2)) / (12 * h)
    # h⁴ of truncation and 1e-16 / h of rounding.
    np.testing.assert_allclose(in_mode(derivative, mode)(zero), difference, rtol=1e-6)


def test_state_is_held_fixed():
    z, a, x = _case()
    with tf.GradientTape() as tape:
        tape.watch([z, a])
        penalty = tfdeq.jacobian_penalty(tanh_cell, z, (a, x))
    d_z, d_a = tape.gradient(penalty, [z, a])
    assert d_z is None
    assert np.abs(d_a).max() > 0


def test_nest_is_weighted_by_its_elements():
    """f scales the leaves by 2 and 3: (4 · 12 + 9 · 3) / 15."""
    z = {"p": tf.zeros([3, 2, 2], tf.float64), "q": tf.zeros([3, 1], tf.float64)}
    f = lambda z: {"p": 2.0 * z["p"], "q": 3.0 * z["q"]}  # noqa: E731
    # With signs for noise and a diagonal Jacobian every estimate is exact.
    penalty = tfdeq.jacobian_penalty(f, z)
    np.testing.assert_allclose(penalty, (4 * 12 + 9 * 3) / 15, rtol=1e-12)


def test_single_argument_needs_no_tuple():
    z = tf.ones([2, 3])
    penalty = tfdeq.jacobian_penalty(lambda z, s: s * z, z, tf.constant(0.0))
    assert float(penalty) == 0.0


@pytest.mark.parametrize("probes", [0, -1, 1.5])
def test_probes_out_of_range(probes):
    with pytest.raises(ValueError, match=f"probes must be an integer.*received {probes}"):
        tfdeq.jacobian_penalty(lambda z: z, tf.ones([2, 3]), probes=probes)


# --- the spectral radius ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_spectral_radius_against_exact_eigenvalues(kind, mode):
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
    # The third eigenvalue is below 0.6 of the first: 0.6^60 is beyond float64.
    np.testing.assert_allclose(received, expected, rtol=1e-8)


def test_spectral_radius_of_a_nest_and_of_a_constant():
    z = {"p": tf.ones([2, 3]), "q": tf.ones([2, 1, 2])}
    f = lambda z, s: {"p": s * z["p"], "q": 0.25 * z["q"]}  # noqa: E731
    scale = tf.constant([[0.5], [-0.75]])
    received = tfdeq.spectral_radius(f, z, (scale,), steps=40)
    np.testing.assert_allclose(received, [0.5, 0.75], rtol=1e-5)
    constant = tfdeq.spectral_radius(lambda z: tf.ones_like(z), tf.zeros([2, 3]))
    np.testing.assert_array_equal(constant, [0.0, 0.0])


def test_spectral_radius_in_half_precision():
    for dtype in (tf.float16, tf.bfloat16):
        z = tf.ones([2, 3], dtype)
        received = tfdeq.spectral_radius(lambda z: tf.cast(0.5, z.dtype) * z, z)
        # bfloat16 has eight bits.
        np.testing.assert_allclose(tf.cast(received, tf.float32), [0.5, 0.5], rtol=2**-6)


def test_spectral_radius_carries_no_gradient_and_checks_its_steps():
    z, a, x = _case()
    with tf.GradientTape() as tape:
        tape.watch([a, x])
        radius = tf.reduce_sum(tfdeq.spectral_radius(tanh_cell, z, (a, x)))
    assert tape.gradient(radius, [a, x]) == [None, None]
    with pytest.raises(ValueError, match="steps must be an integer of at least 1; received 0"):
        tfdeq.spectral_radius(tanh_cell, z, (a, x), steps=0)
