"""Tests of tfdeq.solvers.splitting: every splitting method, on a state of several tensors."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode
from tests.support.split_cases import monotone_case
from tfdeq import solvers

USES = [name for name in solvers.REGISTRY if solvers.REGISTRY[name].uses_splitting]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", fast(["forward_backward"], USES))
def test_solution_gradient_and_rows(name, mode):
    """With and without samples that leave the batch when they are done."""
    f, (w, x), exact = monotone_case(batch=6, monotonicity=1.0)
    tolerance = np.array([1e-12, 1e-12, 1e-3, 1e-12, 1e-2, 1e-12])

    class Batched:
        """With x first, which has a row per sample."""

        def __call__(self, z, x, w):
            return f(z, w, x)

        def splitting(self, x, w):
            return f.splitting(w, x)

    def run(w, x, batched_args):
        with tf.GradientTape() as tape:
            tape.watch([w, x])
            solution = tfdeq.fixed_point(
                Batched(), tf.zeros_like(x), (x, w), solvers.get(name, max_steps=3000),
                tolerance=tolerance, backward_tolerance=1e-12, batched_args=batched_args,
            )  # fmt: skip
            loss = tf.reduce_sum(solution.z**2)
        return solution, *tape.gradient(loss, [w, x])

    whole = in_mode(lambda w, x: run(w, x, None), "graph")(w, x)
    exactly = tolerance == 1e-12
    np.testing.assert_allclose(whole[0].z[exactly], exact[exactly], atol=1e-9)
    inside = ((exact > 0) & (exact < 1)).astype(float)
    d_x = [
        np.linalg.solve(np.eye(6) - w.numpy() * d, 2 * z) * d
        for z, d in zip(exact, inside, strict=True)
    ]
    np.testing.assert_allclose(whole[2][exactly], np.stack(d_x)[exactly], atol=1e-8)
    other = in_mode(lambda w, x: run(w, x, (0,)), mode)(w, x)
    np.testing.assert_array_equal(other[0].steps, whole[0].steps)
    np.testing.assert_allclose(other[0].z, whole[0].z, atol=1e-9)
    np.testing.assert_allclose(other[1], whole[1], atol=1e-8)
