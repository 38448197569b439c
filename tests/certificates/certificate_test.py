"""Tests of tfdeq.certificates.certificate: of the states of other solves, and with constants."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tfdeq.certificates.certificate import Certificate

X = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    cell = tfdeq.cells.MonotoneDense(6, monotonicity=1.0, recurrent_scale=1.0)
    layer = tfdeq.DEQLayer(cell, tfdeq.PeacemanRachford(200, 1e-6))
    return keras.Sequential([keras.Input([3]), layer, keras.layers.Dense(3)])


def test_constants_change_nothing(model):
    certificate = Certificate(model)
    expected = tfdeq.certified_radius(model, X)
    z = certificate.layer(X)
    np.testing.assert_allclose(certificate.radius_of(X, z), expected, rtol=1e-6)
    slopes = certificate.slopes(np.zeros((1, 3), "float32"))
    np.testing.assert_allclose(certificate.radius_of(X, z, slopes), expected, rtol=1e-6)


def test_any_state_is_certified_at_most_as_much_as_the_equilibrium(model):
    certificate = Certificate(model)
    z = certificate.layer(X).numpy()
    exact = certificate.radius_of(X, z).numpy()
    random = np.random.default_rng(1).normal(size=z.shape).astype("float32")
    for size in (1e-3, 1e-2, 1e-1, 1.0):
        found = certificate.radius_of(X, z + size * random).numpy()
        # The error of the exact solve, about 1e-6, is deducted too.
        assert (found <= exact + 1e-5).all()


def test_a_state_of_another_class_certifies_nothing():
    """W = 0, so that f(z) is the equilibrium whatever z is: nothing is deducted for a residual."""
    keras.utils.set_random_seed(0)
    cell = tfdeq.cells.MonotoneDense(6, monotonicity=1.0, recurrent_scale=0.0)
    model = keras.Sequential([keras.Input([3]), tfdeq.DEQLayer(cell), keras.layers.Dense(3)])
    certificate = Certificate(model)
    exact = certificate.radius_of(X, certificate.layer(X)).numpy()
    assert (exact > 0).all()
    z = tf.constant(np.random.default_rng(1).normal(size=(40, 6)))
    found = certificate.radius_of(X, z).numpy()
    kernel = model.layers[-1].kernel.numpy()
    same = np.argmax(z.numpy() @ kernel, axis=1) == np.argmax(model(X), axis=1)
    assert 0 < same.sum() < 40
    np.testing.assert_allclose(found, np.where(same, exact, 0), rtol=1e-6)
