"""Tests of tfdeq.cells.monotone.dense: one equilibrium, its bound, and its gradient in closed form."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, fast, in_mode
from tfdeq.cells import MonotoneDense

SPLITTING = ("forward_backward", "peaceman_rachford")


def layer_of(solver, units=8, dtype="float64", seed=0, **settings):
    keras.utils.set_random_seed(seed)
    cell = MonotoneDense(units, dtype=dtype, **{"recurrent_scale": 1.0, **settings})
    return tfdeq.DEQLayer(cell, solver, dtype=dtype)


def _input(rows=3, columns=4, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns))


def _parts(layer):
    """W and U of row vectors, and b, as arrays."""
    cell = layer.cell
    return (
        cell.recurrent_kernel().numpy(),
        cell.injection.kernel.numpy(),
        cell.injection.bias.numpy(),
    )


@pytest.mark.parametrize("name", fast(["forward_backward"], SPLITTING))
def test_a_thousand_starts_end_in_the_same_point(name):
    """Ten inputs, a hundred starts each, up to 1e3 in size; float32."""
    solver = tfdeq.solvers.get(name, max_steps=3000, tolerance=1e-6)
    layer = layer_of(solver, dtype="float32", monotonicity=0.5)
    random = np.random.default_rng(1)
    x = np.repeat(random.normal(size=(10, 4)), 100, axis=0).astype("float32")
    size = 10.0 ** random.uniform(-3, 3, size=(1000, 1))
    z0 = (size * random.normal(size=(1000, 8))).astype("float32")
    solution = tf.function(layer)(x, z0=z0, return_solution=True)
    assert solution.converged.numpy().all()
    groups = solution.z.numpy().reshape(10, 100, 8)
    apart = np.linalg.norm(groups - groups[:, :1], axis=-1)
    assert (apart <= 1e-5 * np.linalg.norm(groups, axis=-1)).all()


@pytest.mark.parametrize("scale", fast([3.0], [0.0, 0.3, 3.0, 10.0]))
def test_weights_of_any_size_have_an_equilibrium(scale):
    """It is found from x alone; for larger weights plain iteration diverges."""
    solver = tfdeq.PeacemanRachford(20_000, 1e-10)
    layer = layer_of(solver, monotonicity=0.2, recurrent_scale=scale)
    x = _input()
    solution = tf.function(layer)(x, return_solution=True)
    assert solution.converged.numpy().all()
    w, u, b = _parts(layer)
    z = solution.z.numpy()
    np.testing.assert_allclose(z, np.maximum(z @ w + x @ u + b, 0), atol=1e-8 * (1 + scale**2))
    symmetric = np.eye(8) - (w + w.T) / 2
    assert np.linalg.eigvalsh(symmetric).min() >= 0.2 - 1e-10
    if scale >= 3:
        plain = tfdeq.DEQLayer(layer.cell, tfdeq.FixedPointIteration(200), dtype="float64")
        assert not tf.function(plain)(x, return_solution=True).converged.numpy().any()


def test_the_equilibrium_moves_no_further_than_the_bound():
    layer = layer_of(tfdeq.PeacemanRachford(2000, 1e-10))
    x = _input(200)
    near = x + 1e-3 * _input(200, seed=1)
    solve = tf.function(layer)
    moved = np.linalg.norm(solve(near) - solve(x), axis=1) / np.linalg.norm(near - x, axis=1)
    bound = np.linalg.norm(_parts(layer)[1], 2) / layer.cell.monotonicity
    assert moved.max() <= bound
    # For W = (1 − m) I, U = I and active units, the bound is attained.
    sharp = layer_of(tfdeq.PeacemanRachford(2000, 1e-12), units=4, recurrent_scale=0.0)
    sharp(x)
    sharp.cell.injection.kernel.assign(np.eye(4))
    moved = sharp(np.abs(x) + 1e-3) - sharp(np.abs(x))
    np.testing.assert_allclose(moved, 1e-3 / 0.1 * np.ones((200, 4)), rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", fast(["peaceman_rachford"], SPLITTING))
def test_gradient_is_the_closed_form(name, mode):
    """dz = dx U D (I − W D)^(−1), where D selects the active units."""
    solver = tfdeq.solvers.get(name, max_steps=20_000, tolerance=1e-13)
    layer = layer_of(solver)
    x = _input()
    layer.build(x.shape)
    weights = _input(3, 8, seed=5)

    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = layer(x)
            loss = tf.reduce_sum(weights * z)
        variables = [layer.cell.injection.kernel.value, layer.cell.symmetric.kernel.value]
        return z, *tape.gradient(loss, [x, *variables])

    z, d_x, d_u, d_a = in_mode(gradients, mode)(tf.constant(x))
    w, u, _ = _parts(layer)
    active = (z.numpy() > 0).astype(float)
    assert 0 < active.sum() < active.size
    g = np.stack(  # the cotangent of z W + x U + b, row by row
        [
            np.linalg.solve(np.eye(8) - w * d, row) * d
            for row, d in zip(weights, active, strict=True)
        ]
    )
    np.testing.assert_allclose(d_x, g @ u.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(d_u, x.T @ g, rtol=1e-8, atol=1e-10)
    # −A Aᵀ in W: dA = −(G + Gᵀ) A with G = zᵀ g.
    both = z.numpy().T @ g
    expected = -(both + both.T) @ layer.cell.symmetric.kernel.numpy()
    np.testing.assert_allclose(d_a, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.slow  # the closed form is above
def test_gradient_agrees_with_finite_differences():
    layer = layer_of(tfdeq.PeacemanRachford(2000, 1e-13))
    x = _input()
    weights = _input(3, 8, seed=5)
    solve = tf.function(layer)
    solve(x)
    variables = layer.trainable_variables
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(weights * solve(tf.constant(x)))
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    for variable, gradient in zip(variables, gradients, strict=True):
        old, step = variable.numpy(), 1e-6
        direction = np.random.default_rng(2).normal(size=old.shape)
        values = []
        for sign in (1, -1):
            variable.assign(old + sign * step * direction)
            values.append(np.sum(weights * solve(x)))
        variable.assign(old)
        expected = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * direction), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_neighbours_and_bad_rows_do_not_reach_a_sample():
    """With samples that leave the batch when they are done, and one that is NaN."""
    layer = layer_of(tfdeq.PeacemanRachford(500, 1e-6), dtype="float32")
    x = _input(9).astype("float32")
    x[2] *= 1e4
    x[5] = np.nan
    together = layer(x, return_solution=True)
    with tfdeq.SolveScope(compaction=False):
        whole = layer(x, return_solution=True)
    np.testing.assert_array_equal(together.steps, whole.steps)
    np.testing.assert_allclose(together.z, whole.z, rtol=1e-5, atol=1e-6)
    expected = np.full(9, int(tfdeq.Status.CONVERGED))
    expected[5] = int(tfdeq.Status.NON_FINITE)
    np.testing.assert_array_equal(together.status, expected)
    alone = layer(x[2:3], return_solution=True)
    assert alone.steps[0] == together.steps[2]


@pytest.mark.parametrize("name", SPLITTING)
@pytest.mark.slow
def test_weights_of_nan_are_no_error(name):
    layer = layer_of(name)
    x = _input()
    layer(x)
    layer.cell.symmetric.kernel.assign(np.full((8, 8), np.nan))
    status = layer(x, return_solution=True).status.numpy()
    assert (status == int(tfdeq.Status.NON_FINITE)).all()


@pytest.mark.parametrize("policy", fast(["mixed_float16"], ["mixed_bfloat16", "mixed_float16"]))
@pytest.mark.parametrize("name", SPLITTING)
def test_half_precision(name, policy):
    layer = layer_of(tfdeq.solvers.get(name, tolerance=2e-2), dtype=policy, monotonicity=0.5)
    solution = layer(_input().astype("float32"), return_solution=True)
    assert solution.z.dtype == tf.float32
    assert solution.converged.numpy().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"units": 0}, "units must be an integer of at least 1; received 0"),
        (
            {"monotonicity": 0.0},
            "monotonicity must be a finite number greater than 0; received 0.0",
        ),
        ({"recurrent_scale": -1}, "recurrent_scale must be >= 0; received -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MonotoneDense(**{"units": 2, **settings})
