"""Tests of tfdeq.numerics.safeguard: not worse than plain iteration if that converges."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode
from tfdeq import solvers
from tfdeq.iteration import iterate

Status = tfdeq.Status
# The solvers with a history.
SAFEGUARDED = tuple(
    name
    for name in solvers.REGISTRY
    if solvers.REGISTRY[name].restart is not solvers.Solver.restart
)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", fast(["anderson"], SAFEGUARDED))
def test_safeguarded_steps_converge_where_plain_iteration_does(name, mode):
    """Maps on which acceleration may diverge; all of them are contractions."""
    random = np.random.default_rng(0)
    rotation = np.kron(np.eye(3), [[0.0, -0.95], [0.95, 0.0]])
    shear = 0.8 * np.eye(6) + np.diag(np.full(5, 0.5), 1)
    x = random.normal(size=(2, 6))
    for a in (rotation, shear):

        def f(z, a=a):
            # Constant far from the solution, where a long step may end.
            return tf.clip_by_value(tf.matmul(z, a) + x, -50.0, 50.0)

        def solve(solver, f=f):
            return iterate(f, tf.zeros_like(x), solver)

        solver = solvers.get(name, max_steps=2000, tolerance=1e-6, safeguard=2.0)
        solution = in_mode(lambda solver=solver, solve=solve: solve(solver), mode)()
        plain = solve(tfdeq.FixedPointIteration(max_steps=2000, tolerance=1e-6))
        assert plain.converged.numpy().all()
        assert solution.converged.numpy().all()
        # In the worst case, every accelerated attempt of up to fifteen steps is rejected before a
        # series of plain steps, and these series double: up to 256, eight attempts.
        assert (solution.steps.numpy() <= 2 * plain.steps.numpy() + 8 * 15).all()


def test_safeguard_goes_back_from_nan():
    """The accelerated step leaves the domain of the square root; plain steps never do."""
    calls = []

    class Overshooting(tfdeq.FixedPointIteration):
        """Plain iteration that leaves the domain once, when it is close to the solution."""

        def step(self, state, k, z, f_z):
            calls.append(int(k))
            return state, (f_z if int(k) != 3 else -tf.ones_like(z))

    f = lambda z: tf.sqrt(z) + 1.0  # noqa: E731
    z0 = tf.constant([[9.0]], tf.float64)
    bare = iterate(f, z0, Overshooting(max_steps=60, tolerance=1e-10))
    assert bare.status.numpy().tolist() == [Status.NON_FINITE]
    safe = iterate(f, z0, Overshooting(max_steps=60, tolerance=1e-10, safeguard=10.0))
    assert safe.converged.numpy().all()
    # z = √z + 1: the square of the golden ratio.
    np.testing.assert_allclose(safe.z, [[((1 + 5**0.5) / 2) ** 2]], rtol=1e-9)


def test_safeguard_out_of_range():
    for value in (0.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="safeguard must be None or a number of at least 1"):
            tfdeq.Broyden(safeguard=value)
