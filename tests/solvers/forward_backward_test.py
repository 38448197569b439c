"""Tests of tfdeq.solvers.forward_backward: rate, largest step, and functions without a splitting."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import Recorder, in_mode, linear, linear_case
from tests.support.split_cases import SplitFunction, monotone_case
from tfdeq.iteration import iterate


def _states(f, args, solver, z0):
    record = Recorder(f.affine)
    recorded = SplitFunction(record, f.projection)
    tfdeq.fixed_point(recorded, z0, args, solver)
    return np.stack(record.states)


@pytest.mark.parametrize("share", [0.3, 1.0, 1.7])
def test_every_step_comes_nearer_by_the_promised_factor(share):
    """√(1 − m (2α − α²/β)) for α = share · β."""
    f, args, exact = monotone_case(monotonicity=0.4)
    beta = float(f.splitting(*args).cocoercivity())
    solver = tfdeq.ForwardBackward(40, 1e-9, step_size=share * beta)
    z0 = 100 * tf.constant(np.random.default_rng(3).normal(size=exact.shape))
    error = np.linalg.norm(_states(f, args, solver, z0) - exact, axis=-1)
    factor = np.sqrt(1 - 0.4 * (2 * share - share**2) * beta)
    assert (error[1:] <= factor * error[:-1] + 1e-9).all()


def test_a_step_beyond_the_bound_may_run_off():
    """W symmetric and P = I: 2β = 2 / ‖I − W‖ is the largest step."""
    f, args, _ = monotone_case(symmetric=True)
    f.projection = tf.identity
    beta = float(f.splitting(*args).cocoercivity())
    z0 = tf.zeros_like(args[1])
    for share, converges in ((1.9, True), (2.2, False)):
        solver = tfdeq.ForwardBackward(2000, 1e-8, step_size=share * beta)
        solution = in_mode(lambda: tfdeq.fixed_point(f, z0, args, solver), "graph")()  # noqa: B023
        assert solution.converged.numpy().all() == converges


def test_without_parts_it_is_damped_iteration():
    a, x = linear_case(radius=0.9, seed=2)
    f = lambda z: linear(z, a, x)  # noqa: E731
    for step, damping in ((None, 1.0), (0.6, 0.6)):
        found = iterate(f, tf.zeros_like(x), tfdeq.ForwardBackward(9, 1e-9, step_size=step))
        plain = iterate(f, tf.zeros_like(x), tfdeq.FixedPointIteration(9, 1e-9, damping))
        np.testing.assert_allclose(found.z, plain.z, rtol=1e-12)


def test_one_evaluation_a_step():
    f, args, _ = monotone_case()
    states = _states(f, args, tfdeq.ForwardBackward(7, 1e-12), tf.zeros_like(args[1]))
    assert len(states) == 7


def test_settings_out_of_range_are_refused():
    with pytest.raises(
        ValueError, match="step_size must be a finite number greater than 0; received 0"
    ):
        tfdeq.ForwardBackward(step_size=0)
    with pytest.raises(ValueError, match=r"ForwardBackward takes no safeguard.*safeguard=2.0"):
        tfdeq.ForwardBackward(safeguard=2.0)
