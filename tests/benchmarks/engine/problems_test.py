"""Tests of benchmarks.engine.problems: each has the root given in its source."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from benchmarks.engine.problems import PROBLEMS, convection_diffusion_solution
from tfdeq.iteration import iterate


@pytest.mark.parametrize("name", PROBLEMS)
def test_starts_away_from_its_fixed_point(name):
    problem = PROBLEMS[name]()
    z = problem.start[None]
    f_z = problem.f(tf.experimental.numpy, tf.constant(z)).numpy()
    assert f_z.shape == z.shape
    assert np.linalg.norm(f_z - z) > 1e-2 * np.linalg.norm(f_z)


def _root(name):
    problem = PROBLEMS[name]()
    solver = tfdeq.NewtonKrylov(max_steps=1000, tolerance=1e-12, krylov_steps=60)
    f = functools.partial(problem.f, tf.experimental.numpy)
    return iterate(f, tf.constant(problem.start[None]), solver).z.numpy()[0]


@pytest.mark.slow
def test_known_roots():
    # Moré, Garbow, Hillstrom, problem 3.
    np.testing.assert_allclose(_root("Powell badly scaled"), [1.098e-5, 9.106], rtol=1e-3)
    h = _root("Chandrasekhar 0.9")
    # ∫H = 2 (1 − √(1 − c)) / c holds for the midpoint rule too.
    np.testing.assert_allclose(h.mean(), 2 * (1 - 0.1**0.5) / 0.9, rtol=1e-10)
    # The right side is made of it.
    np.testing.assert_allclose(
        _root("convection-diffusion 20"), convection_diffusion_solution().ravel(), rtol=1e-9
    )
