"""Operations on the solvers' small matrices."""

import numpy as np
import pytest
import tensorflow as tf

from tfdeq.numerics.fixed_shapes import for_litert
from tfdeq.solvers import small_matrices

MATRICES = np.random.default_rng(0).normal(size=(3, 5, 5))


def test_diagonals():
    matrices = MATRICES.copy()
    matrices[0, 0, 1] = np.nan  # does not reach the diagonal
    np.testing.assert_array_equal(
        small_matrices.diagonal(tf.constant(matrices)), np.diagonal(matrices, axis1=1, axis2=2)
    )
    changed = small_matrices.with_diagonal(tf.constant(MATRICES), tf.constant(MATRICES[:, 0]))
    np.testing.assert_array_equal(
        changed, tf.linalg.set_diag(tf.constant(MATRICES), tf.constant(MATRICES[:, 0]))
    )


@pytest.mark.parametrize("litert", [False, True])
def test_upper_solve(litert):
    triangle = np.triu(MATRICES) + 2 * np.eye(5)
    expected = np.random.default_rng(1).normal(size=(3, 5))
    right_side = np.einsum("bij,bj->bi", triangle, expected)

    @tf.function
    def solve(triangle, right_side):
        if not litert:
            return small_matrices.upper_solve(triangle, right_side)
        with for_litert(rows=3):
            return small_matrices.upper_solve(triangle, right_side)

    found = solve(tf.constant(triangle), tf.constant(right_side))
    np.testing.assert_allclose(found, expected, rtol=1e-12)  # rounding of float64
