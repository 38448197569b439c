"""Tests of tfdeq.solvers.peaceman_rachford: rate, step sizes, starts, and errors."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode, linear, linear_case
from tests.support.split_cases import monotone_case


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step_size", fast([None, 3.0], [None, 0.03, 1.0, 3.0]))
def test_any_step_size_leads_to_the_fixed_point(step_size, mode):
    f, args, exact = monotone_case(monotonicity=1.0)
    solver = tfdeq.PeacemanRachford(3000, 1e-11, step_size=step_size)
    z0 = tf.constant(1e3 * np.random.default_rng(3).normal(size=exact.shape))
    solution = in_mode(lambda: tfdeq.fixed_point(f, z0, args, solver), mode)()
    assert solution.converged.numpy().all()
    np.testing.assert_allclose(solution.z, exact, atol=1e-8)


def test_every_step_comes_nearer_by_the_promised_factor():
    """√((L − m) / (L + m)) for u, whose limit is z + α (z w + x − z)."""
    f, args, exact = monotone_case(monotonicity=0.5)
    solver = tfdeq.PeacemanRachford(30, 1e-12)
    w, x = (part.numpy() for part in args)
    states = []

    class Spy(tfdeq.PeacemanRachford):
        def step_with_splitting(self, state, k, z, affine_z, prepared):
            u, next_z = super().step_with_splitting(state, k, z, affine_z, prepared)
            states.append(u.numpy())
            return u, next_z

    z0 = 100 * tf.constant(np.random.default_rng(3).normal(size=exact.shape))
    tfdeq.fixed_point(f, z0, args, Spy(**solver.get_config()))
    splitting = f.splitting(*args)
    norm = float(splitting.lipschitz())
    error = np.linalg.norm(np.stack(states) - (exact + (exact @ w + x - exact) / norm), axis=-1)
    assert (error[1:] <= np.sqrt((norm - 0.5) / (norm + 0.5)) * error[:-1] + 1e-9).all()


def test_fewer_steps_than_forward_backward():
    f, args, _ = monotone_case(monotonicity=0.05)
    z0 = tf.zeros_like(args[1])
    steps = [
        in_mode(lambda: tfdeq.fixed_point(f, z0, args, kind(5000, 1e-8)), "graph")()  # noqa: B023
        .steps.numpy()
        .max()
        for kind in (tfdeq.PeacemanRachford, tfdeq.ForwardBackward)
    ]
    assert 2 * steps[0] < steps[1] < 5000


def test_a_start_at_the_fixed_point_stays_there():
    f, args, exact = monotone_case()
    solver = tfdeq.PeacemanRachford(5, 1e-300)
    solution = tfdeq.fixed_point(f, tf.constant(exact), args, solver, iterates=[1, 5])
    for state in solution.iterates:
        np.testing.assert_allclose(state, exact, atol=1e-12)


def test_an_error_of_the_resolvent_does_not_move_the_fixed_point():
    f, args, exact = monotone_case()
    true = f.splitting

    def rounded(w, x):
        splitting = true(w, x)
        return splitting._replace(
            resolvent=lambda step: lambda v: splitting.resolvent(step)(v) * 0.97
        )

    f.splitting = rounded
    solution = tfdeq.fixed_point(
        f, tf.zeros_like(args[1]), args, tfdeq.PeacemanRachford(500, 1e-11)
    )
    np.testing.assert_allclose(solution.z, exact, atol=1e-8)


def test_functions_without_parts_are_refused():
    a, x = linear_case()
    with pytest.raises(
        ValueError, match=r"PeacemanRachford needs a cell that says .* splitting\(x\)"
    ):
        tfdeq.fixed_point(linear, tf.zeros_like(x), (a, x), "peaceman_rachford")
    layer = tfdeq.DEQLayer(tfdeq.cells.DenseCell(3), "peaceman_rachford")
    with pytest.raises(ValueError, match="PeacemanRachford needs a cell"):
        layer(x)


def test_settings_out_of_range_are_refused():
    with pytest.raises(
        ValueError, match="step_size must be a finite number greater than 0; received -1"
    ):
        tfdeq.PeacemanRachford(step_size=-1)
    with pytest.raises(ValueError, match=r"PeacemanRachford takes no safeguard.*safeguard=2.0"):
        tfdeq.PeacemanRachford(safeguard=2.0)


def test_backward_solve_is_by_gmres_with_the_same_settings():
    solver = tfdeq.PeacemanRachford(17, 1e-4, patience=9, absolute_tolerance=1e-9)
    assert solver.for_linear_systems() == tfdeq.GMRES(17, 1e-4, patience=9, absolute_tolerance=1e-9)
    assert tfdeq.Anderson().for_linear_systems() == tfdeq.Anderson()
