"""Tests of tfdeq.cells.monotone.operators: bounds against exact eigenvalues."""

import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

from tfdeq.cells.monotone import operators


def monotone_matrices(count, size, monotonicity=0.1, scale=1.0, seed=0):
    random = np.random.default_rng(seed)
    a, b = scale * random.normal(size=(2, count, size, size))
    transposed = np.swapaxes(b, 1, 2)
    return monotonicity * np.eye(size) + a @ np.swapaxes(a, 1, 2) + b - transposed


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 10.0])
def test_constants_are_bounds_and_nearly_sharp(scale):
    matrices = monotone_matrices(3, 6, scale=scale)
    norm = np.linalg.norm(matrices, 2, axis=(1, 2)).max()
    assert norm <= operators.lipschitz(tf.constant(matrices)) <= 1.05 * norm
    # vᵀM v >= β ‖M v‖² for all v: β is the smallest generalised eigenvalue.
    exact = min(
        scipy.linalg.eigh((m + m.T) / 2, m.T @ m, eigvals_only=True).min() for m in matrices
    )
    found = float(operators.cocoercivity(tf.constant(matrices)))
    assert 0.9 * exact <= found <= exact
    assert found >= 0.9 * 0.1 / norm**2, "never below what m and L alone give"


def test_a_small_monotonicity_and_large_weights_are_no_error():
    """Rounding of A Aᵀ in float32 then exceeds m."""
    matrices = monotone_matrices(1, 30, monotonicity=1e-6, scale=100.0).astype("float32")
    assert float(operators.cocoercivity(tf.constant(matrices))) > 0


def test_resolvent():
    matrices = monotone_matrices(3, 5)
    found = operators.resolvent_matrices(tf.constant(matrices), tf.constant(0.7, tf.float64))
    np.testing.assert_allclose(found @ (np.eye(5) + 0.7 * matrices), [np.eye(5)] * 3, atol=1e-12)


def test_nan_is_no_error():
    matrices = tf.fill([2, 3, 3], float("nan"))
    assert np.isfinite(operators.cocoercivity(matrices))
    assert np.isfinite(operators.resolvent_matrices(matrices, 1.0)).all()
