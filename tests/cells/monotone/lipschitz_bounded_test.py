"""Tests of tfdeq.cells.monotone.lipschitz_bounded: the constant holds, and is attained."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tfdeq.cells import LipschitzBounded


def _layer(units=6, seed=0, scale=2.0, **settings):
    """Returns a layer with weights of any size, as after training."""
    keras.utils.set_random_seed(seed)
    cell = LipschitzBounded(units, recurrent_scale=scale, dtype="float64", **settings)
    layer = tfdeq.DEQLayer(cell, tfdeq.PeacemanRachford(5000, 1e-8), dtype="float64")
    layer.build((None, 3))
    random = np.random.default_rng(seed)
    cell.logarithm.kernel.assign(random.normal(size=(1, units)))
    cell.injection.kernel.assign(random.normal(size=(3, units)))
    return layer


@pytest.mark.parametrize("gamma", [0.3, 3.0])
def test_no_two_equilibria_are_further_apart_than_the_constant_says(gamma):
    """By the Jacobian for every set of active units: dz/dx = U D (I − W D)^(−1)."""
    cell = _layer(lipschitz=gamma).cell
    w, u = cell.recurrent_kernel().numpy(), cell.injection.kernel.numpy()
    norms = []
    for number in range(2**6):
        active = np.array([number >> unit & 1 for unit in range(6)], float)
        norms.append(np.linalg.norm(u * active @ np.linalg.inv(np.eye(6) - w * active), 2))
    assert 0.1 * gamma < max(norms) <= gamma


def test_the_constant_is_reached():
    """One unit with U = Λ = 1: dz/dx = 1 / (1 − W) = γ, except for m."""
    cell = LipschitzBounded(1, 2.0, monotonicity=1e-6, recurrent_scale=0.0, dtype="float64")
    layer = tfdeq.DEQLayer(cell, tfdeq.PeacemanRachford(500, 1e-12), dtype="float64")
    layer(np.ones((1, 1)))
    cell.injection.kernel.assign([[1.0]])
    moved = layer(np.array([[2.0]])) - layer(np.array([[1.0]]))
    np.testing.assert_allclose(moved, [[2.0]], rtol=1e-5)


@pytest.mark.parametrize("kind", [tfdeq.PeacemanRachford, tfdeq.ForwardBackward])
@pytest.mark.slow
def test_splitting_methods_converge_in_the_metric(kind):
    layer = _layer(scale=0.3, monotonicity=1.0)
    solver = kind(5000, 1e-9)
    x = np.random.default_rng(1).normal(size=(10, 3))
    start = 1e3 * np.random.default_rng(2).normal(size=(10, 6))
    other = tfdeq.DEQLayer(layer.cell, solver, dtype="float64")
    solution = tf.function(other)(x, z0=start, return_solution=True)
    assert solution.converged.numpy().all()
    np.testing.assert_allclose(solution.z, tf.function(layer)(x), atol=1e-5)


def test_every_weight_is_trained():
    layer = _layer(scale=0.3)
    x = np.random.default_rng(1).normal(size=(10, 3))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.function(layer)(x) ** 2)
    variables = layer.trainable_variables
    assert len(variables) == 5
    for gradient in tape.gradient(loss, [variable.value for variable in variables]):
        assert np.abs(gradient).max() > 0


@pytest.mark.slow
def test_certified_radius_in_the_metric():
    """No direction tried leads to another answer within the radius."""
    layer = _layer(lipschitz=0.5, scale=0.3)
    model = keras.Sequential([keras.Input([3], dtype="float64"), layer, keras.layers.Dense(3)])
    x = np.random.default_rng(1).normal(size=(20, 3))
    certify = tf.function(lambda x: tfdeq.certified_radius(model, x), autograph=False)
    radius = certify(x).numpy()
    assert (radius > 0).all()
    angle = np.random.default_rng(2).normal(size=(20, 50, 3))
    angle /= np.linalg.norm(angle, axis=-1, keepdims=True)
    near = (x[:, None] + radius[:, None, None] * angle).reshape(-1, 3)
    answers = np.argmax(tf.function(model)(near), axis=1).reshape(20, 50)
    assert (answers == np.argmax(tf.function(model)(x), axis=1)[:, None]).all()


def test_a_constant_out_of_range_is_refused():
    with pytest.raises(
        ValueError, match="lipschitz must be a finite number greater than 0; received 0"
    ):
        LipschitzBounded(2, lipschitz=0)
