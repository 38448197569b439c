"""Tests of tfdeq.solvers.krylov, compared with least squares over an explicit Krylov space."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import MODES, in_mode
from tfdeq.solvers.krylov import gmres

SIZE = 8


def _systems(batch=3, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(batch, SIZE, SIZE)) / 2, random.normal(size=(batch, SIZE))


def _solve(j, r, target, allowed, size, mode="eager"):
    def solve():
        return gmres(
            lambda v: tf.linalg.matvec(tf.constant(j), v),
            tf.constant(r),
            tf.constant(target, tf.float64),
            tf.constant(allowed),
            size,
        )

    return in_mode(solve, mode)()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dimensions", [1, 3, 6])
def test_minimises_over_the_krylov_space(mode, dimensions):
    j, r = _systems()
    delta, spent = _solve(j, r, [0.0] * 3, [dimensions] * 3, 6, mode)
    assert spent.numpy().tolist() == [dimensions] * 3
    for sample in range(3):
        matrix = np.eye(SIZE) - j[sample]
        space = [r[sample]]
        for _ in range(dimensions - 1):
            space.append(matrix @ space[-1])
        basis = np.linalg.qr(np.stack(space, axis=1))[0]
        weights = np.linalg.lstsq(matrix @ basis, r[sample], rcond=None)[0]
        # The monomial basis of the reference loses some digits.
        np.testing.assert_allclose(delta[sample], basis @ weights, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_each_sample_has_its_own_target_and_allowance(mode):
    j, r = _systems(batch=4)
    target, allowed = [1e-1, 1e-12, 0.0, 1e9], [8, 8, 2, 8]
    delta, spent = _solve(j, r, target, allowed, 8, mode)
    spent = spent.numpy()
    assert spent[1] == SIZE
    assert 0 < spent[0] < SIZE
    assert spent[2] == 2
    assert spent[3] == 0
    np.testing.assert_array_equal(delta[3], r[3])  # nothing to do: a plain step
    left = np.linalg.norm(r - (delta - np.einsum("bij,bj->bi", j, delta)), axis=1)
    assert left[0] <= 1e-1
    assert left[1] <= 1e-11
    for sample in range(4):
        one = slice(sample, sample + 1)
        alone, alone_spent = _solve(j[one], r[one], target[one], allowed[one], 8, mode)
        assert alone_spent[0] == spent[sample]
        np.testing.assert_allclose(alone[0], delta[sample], rtol=1e-12, atol=1e-13)


def test_a_small_space_ends_early():
    """r is an eigenvector: one product, and no division by the remaining zero."""
    j, _ = _systems(batch=1)
    values, vectors = np.linalg.eigh((j[0] + j[0].T) / 2)
    symmetric = ((j[0] + j[0].T) / 2)[None]
    delta, spent = _solve(symmetric, vectors[:, :1].T, [0.0], [8], 8)
    assert spent[0] == 1
    np.testing.assert_allclose(delta[0], vectors[:, 0] / (1 - values[0]), rtol=1e-12)


def test_nan_ends_its_sample_and_no_other():
    j, r = _systems(batch=2)
    j[0] = np.nan
    delta, _ = _solve(j, r, [0.0, 0.0], [8, 8], 8)
    np.testing.assert_allclose(delta[1], np.linalg.solve(np.eye(SIZE) - j[1], r[1]), rtol=1e-10)


def test_singular_system_stays_finite():
    j = np.eye(SIZE)[None]
    _, r = _systems(batch=1)
    delta, _ = _solve(j, r, [0.0], [8], 8)
    assert np.isfinite(delta).all()
