"""States of any size, equilibria at zero, and half precision: reported residuals are correct."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import (
    GENERAL,
    MODES,
    fast,
    fast_pairs,
    in_mode,
    linear,
    linear_case,
    tanh_cell,
)
from tfdeq import adjoints, solvers
from tfdeq.numerics.function_evaluation import residual_of

Status = tfdeq.Status
RULES = ("implicit", "unrolled", "phantom_gradient", "shine")


def _residual(z, f_z):
    z, f_z = np.asarray(z, "float64"), np.asarray(f_z, "float64")
    size = np.abs(f_z).max(axis=-1, keepdims=True)  # whose squares would be 0 even in float64
    z, f_z = z / size, f_z / size
    return np.linalg.norm(f_z - z, axis=-1) / np.linalg.norm(f_z, axis=-1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "size", fast([1e-30, 1e35], [1e-30, 1e-22, 1e-19, 1e-12, 1.0, 1e12, 1e20, 1e35])
)
@pytest.mark.parametrize("name", fast(["anderson"], GENERAL))
def test_a_solve_is_the_same_in_any_unit(name, size, mode):
    """A linear map in units of `size`: the same steps, residuals and answer in that unit."""
    a, x = (part.astype("float32") for part in linear_case(batch=3, radius=0.6, seed=1))

    def solve(x):
        return tfdeq.fixed_point(linear, tf.zeros_like(x), (a, x), name, "implicit")

    run = in_mode(solve, mode)
    usual, scaled = run(tf.constant(x)), run(tf.constant(np.float32(size) * x))
    assert scaled.converged.numpy().all()
    # Another unit rounds differently, by a few units in the last place.
    np.testing.assert_allclose(scaled.z / size, usual.z, rtol=2e-3, atol=1e-4)
    z = np.asarray(scaled.z, "float64")
    true = _residual(z, z @ a.astype("float64") + np.float32(size).astype("float64") * x)
    np.testing.assert_allclose(scaled.residual, true, rtol=1e-2, atol=1e-6)
    assert np.abs(scaled.steps.numpy() - usual.steps.numpy()).max() <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        ("float32", [1e-36, 1e-25, 1e-19, 1.0, 1e19, 1e30]),
        ("float64", [1e-290, 1e-170, 1e-22, 1.0, 1e160, 1e290]),
    ],
)
def test_residual_of_states_of_any_size_side_by_side(dtype, sizes, mode):
    random = np.random.default_rng(0)
    unit_z = random.normal(size=(len(sizes), 5)).astype(dtype)
    unit_f = (unit_z + 1e-3 * random.normal(size=unit_z.shape)).astype(dtype)
    scale = np.array(sizes, dtype)[:, None]
    found = in_mode(residual_of, mode)(tf.constant(unit_z * scale), tf.constant(unit_f * scale))
    # The states themselves are rounded, and their differences are a thousandth of them.
    np.testing.assert_allclose(found.relative, _residual(unit_z, unit_f), rtol=2e-3)
    distance = np.linalg.norm((unit_f - unit_z).astype("float64"), axis=1) * sizes
    np.testing.assert_allclose(
        np.asarray(found.distance, "float64"), distance, rtol=2e-3, atol=1e-37
    )


@pytest.mark.parametrize(
    ("solver", "dtype"),
    fast_pairs(
        ["fixed_point_iteration", "anderson", "broyden"],
        ["float32", "float64"],
        ["float32", "fixed_point_iteration"],
    ),
)
def test_an_equilibrium_at_zero(solver, dtype):
    start = tf.constant([[0.0, 0.0], [1.0, 2.0]], dtype)
    solution = tfdeq.fixed_point(lambda z: 0.5 * z, start, solver=solver)
    assert solution.residual[0] == 0
    assert solution.status[0] == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_residual_at_zero(dtype):
    z = tf.constant([[0.0, 0.0], [1e-30, 0.0], [1.0, 0.0], [np.nan, 0.0]], dtype)
    found = residual_of(z, tf.zeros_like(z))
    assert found.relative[0] == 0
    assert (found.relative.numpy()[1:3] > 1e20).all()
    assert np.isfinite(found.relative.numpy()[1:3]).all()
    assert np.isnan(found.relative[3])


@pytest.mark.parametrize(
    ("adjoint", "size"),
    fast(
        [("implicit", 1e20), *((rule, 1e-25) for rule in RULES)],
        itertools.product(RULES, [1e-25, 1e-12, 1.0, 1e20]),
    ),
)
def test_gradients_in_any_unit(adjoint, size):
    a, x = (part.astype("float32") for part in linear_case(batch=2, radius=0.4, seed=1))
    rules = {"unrolled": tfdeq.Unrolled(40), "phantom_gradient": tfdeq.PhantomGradient(40)}
    if adjoint == "shine":
        rules["shine"] = adjoints.get("shine", refine_steps=20)
    x = tf.constant(np.float32(size) * x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = tfdeq.fixed_point(
            linear, tf.zeros_like(x), (a, x), tfdeq.Broyden(60, 1e-6), rules.get(adjoint, adjoint)
        ).z
        loss = tf.reduce_sum(z)
    expected = np.ones([2, 4]) @ np.linalg.inv(np.eye(4) - a).T
    np.testing.assert_allclose(tape.gradient(loss, x), expected, rtol=1e-4)


# --- equilibria at zero ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name",
    fast(
        ["anderson", "broyden", "fixed_point_iteration"],
        [name for name in GENERAL if name != "gmres"],
    ),
)
def test_an_absolute_tolerance_ends_a_solve_at_zero(name, mode):
    """f(z) = Az with A symmetric: no relative residual shows that z is close to the equilibrium."""
    a, _ = linear_case(size=4, radius=0.4, seed=3)
    a = tf.constant((a + a.T) / 2)
    z0 = tf.constant(
        [[1.0, 2.0, -1.0, 0.5], [0.0, 1.0, 0.0, 1.0], [3.0, 0.0, 0.0, 1.0]], tf.float64
    )
    level = tf.constant([1e-4, 1e-8, 0.0], tf.float64)

    def solve(**settings):
        f = lambda z, a: tf.matmul(z, a)  # noqa: E731
        solver = solvers.get(name, max_steps=50, tolerance=1e-300)
        return tfdeq.fixed_point(f, z0, (a,), solver, **settings)

    solution = in_mode(lambda: solve(absolute_tolerance=level), mode)()
    assert solution.converged.numpy()[:2].all()
    distance = np.linalg.norm(solution.z @ a - solution.z, axis=1)
    assert (distance[:2] <= level.numpy()[:2]).all()
    assert solution.steps[0] <= solution.steps[1] < solution.steps[2]
    # The reported residual is that of the returned state.
    np.testing.assert_allclose(solution.residual, _residual(solution.z, solution.z @ a), rtol=1e-5)


def test_absolute_tolerance_of_solver_and_layer():
    solver = tfdeq.Anderson(absolute_tolerance=1e-3)
    f = lambda z: 0.1 * z  # noqa: E731
    assert tfdeq.fixed_point(f, tf.ones([2, 3]), solver=solver).converged.numpy().all()
    assert not tfdeq.fixed_point(f, tf.ones([2, 3]), solver="fixed_point_iteration").converged[0]
    for value in (-1e-3, float("inf"), "small"):
        with pytest.raises(ValueError, match="absolute_tolerance must be a finite number"):
            tfdeq.Anderson(absolute_tolerance=value)
    with pytest.raises(ValueError, match="absolute_tolerance must be at least 0"):
        tfdeq.fixed_point(f, tf.ones([2, 3]), absolute_tolerance=-1.0)


@pytest.mark.parametrize("mode", MODES)
def test_reversible_gradient_at_an_absolute_tolerance(mode):
    """The adjoint differentiates the iterations that led to the returned state."""
    x = tf.constant([[1.0], [1e-5]], tf.float64)
    solver = tfdeq.Reversible(max_steps=60, tolerance=1e-300, absolute_tolerance=1e-3)

    def gradient(rule):
        with tf.GradientTape() as tape:
            tape.watch(x)
            solution = tfdeq.fixed_point(
                lambda z, x: 0.5 * z + x, tf.zeros_like(x), (x,), solver, rule
            )
        return solution.steps, tape.gradient(solution.z, x)

    steps, found = in_mode(lambda: gradient("reversible_backprop"), mode)()
    assert 1 == steps[1] < steps[0]
    weights = [0.0, 0.0]  # d w_k / d x of w_{k+1} = 0.2 w_{k-1} + 0.8 (0.5 w_k + x), w_{-1} = w_0
    for _ in range(int(steps[0]) - 1):
        weights.append(0.2 * weights[-2] + 0.4 * weights[-1] + 0.8)
    np.testing.assert_allclose(found, [[weights[-1]], [0.0]], rtol=1e-10)


# --- half precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"), fast_pairs(GENERAL, ["float16", "bfloat16"], ["float16", "broyden"])
)
def test_residual_is_of_the_state_that_is_returned(name, dtype):
    a, x = (tf.cast(part, dtype) for part in linear_case(batch=3, radius=0.5, seed=2))
    solution = tfdeq.fixed_point(tanh_cell, tf.zeros_like(x), (a, x), name, "implicit")
    f_z = tf.cast(tanh_cell(solution.z, a, x), tf.float32)
    expected = _residual(tf.cast(solution.z, tf.float32), f_z)
    np.testing.assert_allclose(solution.residual, expected, rtol=1e-4, atol=1e-7)
    if dtype == "float16":
        assert solution.converged.numpy().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", fast([1e-6], [1.0, 1e-3, 1e-6]))
def test_implicit_gradient_through_half_precision_leaves(size, mode):
    """A nest of float32 and float16, with cotangents that float16 could not represent."""
    x = tf.ones([4, 8])

    def f(z, x):
        half = tf.cast(z["half"], tf.float32)
        return {
            "wide": 0.3 * z["wide"] + 0.1 * half + x,
            "half": tf.cast(0.5 * z["wide"], tf.float16),
        }

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z0 = {"wide": tf.zeros_like(x), "half": tf.zeros([4, 8], tf.float16)}
            z = tfdeq.fixed_point(f, z0, (x,), tolerance=1e-5).z
            loss = size * tf.reduce_sum(z["wide"])
        return tape.gradient(loss, x)

    # wide = 0.35 wide + x. Values that pass through float16 are rounded to 5e-4.
    found = in_mode(gradient, mode)(x)
    np.testing.assert_allclose(found, np.full([4, 8], size / 0.65), rtol=1e-3)
