"""Tests of tfdeq.regularizers."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, in_mode, linear_case, tanh_cell


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
    # Signs of 12 elements, up to one sign per sample: two of 512 draws may be equal.
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
    # The same seed gives other noise under XLA (stateless_normal chooses another generator there).
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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("power_steps", [0, 2])
@pytest.mark.parametrize("shape", [[0, 3], [0, 4, 3], [2, 0, 3]])
def test_nothing_to_count_is_zero_with_zero_gradient(shape, power_steps, mode):
    def value_and_gradient(scale):
        with tf.GradientTape() as tape:
            tape.watch(scale)
            z = tf.zeros(shape)
            penalty = tfdeq.jacobian_penalty(
                lambda z, s: s * z, z, scale, power_steps=power_steps, seed=[1, 2]
            )
        return penalty, tape.gradient(penalty, scale)

    penalty, gradient = in_mode(value_and_gradient, mode)(tf.constant(2.0))
    assert float(penalty) == float(gradient) == 0.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32])
def test_half_precision_is_squared_and_summed_in_float32(dtype, mode):
    def penalty(scale, shape, power_steps):
        z = tf.zeros(shape, dtype)
        return tfdeq.jacobian_penalty(
            lambda z: tf.cast(scale, dtype) * z, z, power_steps=power_steps, seed=[1, 2]
        )

    for scale, shape, power_steps in [
        (0.5, [64, 2048], 0),
        (0.5, [64, 2048], 1),
        (2.0**-14, [2, 3], 0),
        (2.0**-14, [2, 3], 2),
        (0.0, [4, 3], 0),
        (0.0, [4, 3], 2),
        (0.0, [4, 3, 2], 2),
    ]:
        result = in_mode(lambda: penalty(scale, shape, power_steps), mode)()  # noqa: B023
        assert result.dtype == tf.float32
        np.testing.assert_allclose(result, scale**2, rtol=1e-6)


def test_power_steps_of_a_tiny_and_of_a_huge_jacobian():
    for scale in (1e-16, 1e16):
        penalty = tfdeq.jacobian_penalty(lambda z: scale * z, tf.ones([2, 3]), power_steps=2)  # noqa: B023
        np.testing.assert_allclose(penalty, scale**2, rtol=1e-6)


def test_noise_of_a_seed_meets_that_of_no_other():
    """Seeds as from a seed generator: [s, t], [s, t + 1], …; with probes and leaves for each."""
    w = tf.random.stateless_normal([40, 40], [1, 2], dtype=tf.float64)
    z = tf.zeros([2, 40], tf.float64)

    def of_probes(seed, probes):
        return probes * float(tfdeq.jacobian_penalty(lambda z: z @ w, z, probes=probes, seed=seed))

    def of_leaf(seed, place):
        f = lambda z: [z[i] @ w if i == place else 0.0 * z[i] for i in (0, 1)]  # noqa: E731
        return 2 * float(tfdeq.jacobian_penalty(f, [z, z], seed=seed))

    values = []
    for t in range(4):
        sums = [of_probes([5, t], probes) for probes in (1, 2, 3)]
        values += [sums[0], sums[1] - sums[0], sums[2] - sums[1], of_leaf([5, t + 4], 1)]
    assert len(set(np.round(values, 6))) == len(values)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("power_steps", [0, 1, 2])
def test_padding_does_not_count(power_steps, mode):
    """A diagonal Jacobian, for which each estimate is exact, and a mask that f captures."""
    scale = tf.constant([[[2.0]], [[3.0]], [[50.0]]])
    mask = tf.sequence_mask([5, 2, 0], 8)[:, :, None]
    f = lambda z, s: tf.where(mask, s * z + 1.0, 0.0)  # noqa: E731
    penalty = in_mode(
        lambda z: tfdeq.jacobian_penalty(f, z, scale, power_steps=power_steps, seed=[1, 2]), mode
    )
    np.testing.assert_allclose(penalty(tf.ones([3, 8, 4])), (4 * 5 + 9 * 2) / 7, rtol=1e-6)


def test_elements_without_influence_count_where_their_place_or_sample_has_some():
    dead_units = tf.constant([2.0, 0.0])
    penalty = tfdeq.jacobian_penalty(lambda z: dead_units * z, tf.zeros([3, 4, 2]))
    np.testing.assert_allclose(penalty, 2.0)
    dead_sample = tf.constant([[2.0], [0.0]])
    penalty = tfdeq.jacobian_penalty(lambda z: dead_sample * z, tf.zeros([2, 3]))
    np.testing.assert_allclose(penalty, 2.0)


def test_places_whose_signs_cancel_count():
    """f is the mean of the features: Jᵀε is the sum of four signs, 0 for 3 / 8 of the places."""
    f = lambda z: tf.reduce_mean(z, axis=-1, keepdims=True) + tf.zeros_like(z)  # noqa: E731
    penalty = tfdeq.jacobian_penalty(f, tf.zeros([64, 256, 4]), seed=[1, 2])
    # (Σε / 4)² has mean 1/4 and standard deviation √(2 · 12) / 16; four of them for 16384 places.
    assert abs(float(penalty) - 0.25) < 4 * 0.31 / 128


@pytest.mark.parametrize("mode", MODES)
def test_gradient_with_padding_against_finite_differences(mode):
    random = np.random.default_rng(0)
    a, direction = (tf.constant(random.normal(size=(4, 4))) for _ in range(2))
    z, x = (tf.constant(random.normal(size=(2, 5, 4))) for _ in range(2))
    mask = tf.sequence_mask([5, 2], 5)[:, :, None]
    f = lambda z, a: tf.where(mask, tf.tanh(z @ a + x), 0.0)  # noqa: E731

    def value(t):
        return tfdeq.jacobian_penalty(f, z, (a + t * direction,), 2, seed=[5, 6])

    def derivative(t):
        with tf.GradientTape() as tape:
            tape.watch(t)
            result = value(t)
        return tape.gradient(result, t)

    h, zero = 1e-4, tf.zeros([], tf.float64)
    value_in_mode = in_mode(value, mode)
    low2, low1, high1, high2 = (value_in_mode(zero + step * h) for step in (-2, -1, 1, 2))
    difference = (8 * (high1 - low1) - (high2 - low2)) / (12 * h)
    np.testing.assert_allclose(in_mode(derivative, mode)(zero), difference, rtol=1e-6)


def test_single_argument_needs_no_tuple():
    z = tf.ones([2, 3])
    penalty = tfdeq.jacobian_penalty(lambda z, s: s * z, z, tf.constant(0.0))
    assert float(penalty) == 0.0


@pytest.mark.parametrize("probes", [0, -1, 1.5])
def test_probes_out_of_range(probes):
    with pytest.raises(ValueError, match=f"probes must be an integer.*received {probes}"):
        tfdeq.jacobian_penalty(lambda z: z, tf.ones([2, 3]), probes=probes)
