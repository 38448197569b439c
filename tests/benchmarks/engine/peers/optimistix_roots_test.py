"""Runs only where the peers are installed, as in the environment of `make bench`."""

import pytest

from benchmarks.engine.problems import affine

pytest.importorskip("jax")
pytest.importorskip("optimistix")
import jax

from benchmarks.engine.peers import optimistix_roots


def test_newton_solves_an_affine_map_in_one_jacobian():
    jax.config.update("jax_enable_x64", True)
    problem = affine(0.9, normal=True, size=10)
    # One evaluation at the start and one at the end, and ten products between them.
    assert optimistix_roots.count(problem, "newton", 100, 1e-8) == 12
    assert optimistix_roots.count(problem, "chord", 100, 1e-8) == 12
    assert optimistix_roots.count(problem, "newton", 5, 1e-8) is None
