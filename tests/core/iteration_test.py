"""Tests of tfdeq.iteration: counting, stopping and freezing, sample by sample."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies

import tfdeq
from tests.support.cases import (
    GENERAL,
    MODES,
    Recorder,
    fast,
    in_mode,
    linear,
    linear_case,
    tanh_cell,
)
from tfdeq import solvers
from tfdeq.iteration import iterate

Status = tfdeq.Status
SOLVERS = GENERAL
FEW = ("anderson", "broyden")  # for the fast run of tests with many compilations
# Solvers whose iterates cost one evaluation; the others also make products with the Jacobian.
ONE_EVALUATION = tuple(name for name in SOLVERS if not solvers.REGISTRY[name].uses_products)
WITH_PRODUCTS = tuple(name for name in SOLVERS if solvers.REGISTRY[name].uses_products)
SIZE = 5


def _relative_residual(z, f_z):
    z, f_z = np.asarray(z, "float64"), np.asarray(f_z, "float64")
    return np.linalg.norm(f_z - z, axis=-1) / np.linalg.norm(f_z, axis=-1)


def _tanh_case(batch, seed=0, gain=0.8, dtype="float32"):
    a, x = linear_case(batch, SIZE, gain, seed)
    return a.astype(dtype), x.astype(dtype)


def _hostile(z, a, x):
    """tanh(zA + x), except in rows whose first input is above 100, where z diverges or is NaN at once."""
    runaway = tf.abs(x[:, :1]) > 100.0
    return tf.where(runaway, x * (z + 1.0) ** 2, tf.tanh(tf.matmul(z, a) + x))


def _solve(x, a, solver, mode, **settings):
    def solve(x, a):
        return iterate(lambda z: _hostile(z, a, x), tf.zeros_like(x), solver, **settings)

    return in_mode(solve, mode)(tf.constant(x), tf.constant(a))


# --- counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", fast(["graph"], ["eager", "graph"]))
@pytest.mark.parametrize("name", ONE_EVALUATION)
def test_counts_freezes_and_returns_the_best_iterate(name, mode):
    """Compared with a record of all states at which f was evaluated."""
    a, x = _tanh_case(4, dtype="float64")
    x[1] *= 0.01
    record = Recorder(lambda z: tanh_cell(z, a, x))
    max_steps = tf.constant([3, 25, 25, 1])
    tolerance = tf.constant([1e-3, 1e-5, 1e-2, 1e-3], tf.float64)

    def solve():
        return iterate(record, tf.zeros_like(x), solvers.get(name), tolerance, max_steps)

    solution = in_mode(solve, mode)()
    steps = solution.steps.numpy()
    states = np.stack(record.states)
    assert len(states) == steps.max(), "f is evaluated until the last sample is done, not longer"
    assert steps[0] == 3
    assert steps[3] == 1
    assert steps[1] > steps[2] > 1
    for sample in range(4):
        own = states[: steps[sample], sample]
        residuals = _relative_residual(own, np.tanh(own @ a + x[sample]))
        np.testing.assert_array_equal(
            states[steps[sample] :, sample], np.tile(own[-1], (len(states) - steps[sample], 1))
        )
        best = residuals.argmin()
        np.testing.assert_array_equal(solution.z[sample], own[best])
        np.testing.assert_allclose(solution.residual[sample], residuals[best], rtol=1e-6)
        assert (residuals[:-1] > tolerance.numpy()[sample]).all(), "it stops at the first success"


@pytest.mark.parametrize("budget", [3, 6, 40])
@pytest.mark.parametrize("name", WITH_PRODUCTS)
def test_products_count_as_evaluations(name, budget):
    a, x = _tanh_case(1, dtype="float64", gain=1.5)
    calls = []

    class Spy(solvers.REGISTRY[name]):
        def step_with_products(self, state, k, z, f_z, product, *others):
            calls.append("evaluation")

            def counted(v):
                calls.append("product")
                return product(v)

            return super().step_with_products(state, k, z, f_z, counted, *others)

    solution = iterate(
        lambda z: tanh_cell(z, a, x), tf.zeros_like(x), Spy(max_steps=budget, tolerance=1e-6)
    )
    assert solution.steps.numpy().tolist() == [len(calls)]
    assert calls.count("evaluation") < len(calls) <= budget


def test_best_iterate_is_kept_when_later_ones_are_worse():
    """For an expanding map, the start is the best iterate."""
    x = tf.constant([[1.0], [5.0]])
    f = lambda z: -3.0 * (z - x) + x  # noqa: E731
    z0 = x + 0.01
    solution = iterate(f, z0, tfdeq.FixedPointIteration(max_steps=6))
    np.testing.assert_array_equal(solution.z, z0)
    assert (solution.status.numpy() == Status.MAX_STEPS).all()
    assert (solution.steps.numpy() == 6).all()
    np.testing.assert_allclose(solution.residual, _relative_residual(z0, f(z0)), rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", fast(["anderson"], SOLVERS))
def test_tolerance_and_budget_override_the_solver(name, mode):
    a, x = _tanh_case(3)
    solver = solvers.get(name, max_steps=4, tolerance=0.5)

    def solve(tolerance, max_steps):
        return iterate(lambda z: tanh_cell(z, a, x), tf.zeros_like(x), solver, tolerance, max_steps)

    solve = in_mode(solve, mode)
    loose = solve(tf.constant(1e-1), tf.constant(40))
    mixed = solve(tf.constant([1e-1, 1e-4, 1e-4]), tf.constant([40, 40, 2]))
    assert loose.converged.numpy().all()
    assert (loose.residual.numpy() <= 1e-1).all()
    assert mixed.status.numpy().tolist() == [
        Status.CONVERGED,
        Status.CONVERGED,
        Status.MAX_STEPS,
    ]
    assert mixed.residual[1] <= 1e-4
    assert mixed.steps[1] > loose.steps[1]
    assert mixed.steps[2] == 2
    np.testing.assert_allclose(mixed.z[0], loose.z[0], rtol=1e-6)


def test_budget_below_one_in_a_tensor_still_makes_one_evaluation():
    x = tf.ones([2, 3])

    @tf.function(autograph=False)
    def solve(max_steps):
        return iterate(
            lambda z: 0.5 * z + x, tf.zeros_like(x), solvers.get("broyden"), None, max_steps
        )

    assert solve(tf.constant([0, 2])).steps.numpy().tolist() == [1, 2]


# --- the four statuses ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_each_status_in_a_case_made_for_it(mode):
    """Four samples of z <- s z + 1 with plain iteration and different s."""
    slope = tf.constant([[0.5], [0.999], [-1.0], [1e30]])

    def solve():
        solver = tfdeq.FixedPointIteration(max_steps=40, tolerance=1e-4)
        return iterate(lambda z: slope * z + 1.0, tf.zeros([4, 1]), solver)

    solution = in_mode(solve, mode)()
    expected = [Status.CONVERGED, Status.MAX_STEPS, Status.STAGNATED, Status.NON_FINITE]
    assert solution.status.numpy().tolist() == expected
    # s = -1 cycles 0, 1, 0, ..., which the second 0 shows.
    assert solution.steps[2] == 3
    assert solution.steps[1] == 40
    assert np.isfinite(solution.z).all()
    assert np.isfinite(solution.residual).all()


def test_converging_with_the_last_evaluation_counts_as_converged():
    x = tf.ones([1, 1])
    solver = tfdeq.FixedPointIteration(max_steps=2, tolerance=1e-6)
    solution = iterate(lambda z: x, tf.zeros([1, 1]), solver)
    assert solution.status.numpy().tolist() == [Status.CONVERGED]
    assert solution.steps.numpy().tolist() == [2]


# --- NaN and Inf ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", fast(["anderson"], SOLVERS))
def test_non_finite_samples_end_alone(name, mode):
    a, x = _tanh_case(3)
    solver = solvers.get(name, max_steps=30, tolerance=1e-4)
    clean = _solve(x, a, solver, mode)
    others, poisoned = [0, 2, 4], [1, 3, 5]
    dirty_x = np.zeros([6, SIZE], "float32")
    dirty_x[others] = x
    # The last overflows in the first evaluation: the square of its norm is beyond float32.
    dirty_x[poisoned] = [[np.nan], [np.inf], [1e20]]
    dirty = _solve(dirty_x, a, solver, mode)
    assert (dirty.status.numpy()[poisoned] == Status.NON_FINITE).all()
    assert np.isfinite(dirty.residual).all()
    # z0 was the last finite iterate.
    np.testing.assert_array_equal(dirty.z.numpy()[poisoned], np.zeros([3, SIZE]))
    np.testing.assert_array_equal(dirty.steps.numpy()[others], clean.steps)
    np.testing.assert_array_equal(dirty.status.numpy()[others], clean.status)
    np.testing.assert_allclose(dirty.z.numpy()[others], clean.z, rtol=1e-5, atol=1e-6)
    assert clean.converged.numpy().all()


@pytest.mark.parametrize("name", ONE_EVALUATION)
def test_sample_that_turns_non_finite_later_keeps_its_last_finite_iterate(name):
    """f is finite three times, and its residual falls, before NaN."""
    calls = []
    a = tf.linalg.diag(tf.constant([0.5, -0.3, 0.2], tf.float64))

    def f(z):
        calls.append(z.numpy())
        return linear(z, a, 1.0) * (1.0 if len(calls) <= 3 else np.nan)

    z0 = tf.constant([[0.0, 1.0, 5.0]], tf.float64)
    solver = solvers.get(name, tolerance=1e-14)
    solution = iterate(f, z0, solver)
    assert solution.status.numpy().tolist() == [Status.NON_FINITE]
    assert solution.steps.numpy().tolist() == [4]
    residuals = [_relative_residual(z, linear(z, a, 1.0))[0] for z in calls[:3]]
    np.testing.assert_array_equal(solution.z, calls[int(np.argmin(residuals))])
    np.testing.assert_allclose(solution.residual[0], min(residuals), rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name", fast(["anderson", "broyden", "fixed_point_iteration", "reversible"], SOLVERS)
)
def test_non_finite_start(name, mode):
    a, x = _tanh_case(3)
    z0 = np.zeros_like(x)
    z0[0, 0], z0[2, 1] = np.nan, np.inf

    def solve():
        # tanh(inf A) may be finite, so only the first sample certainly remains non-finite.
        f = lambda z: linear(z, a, x)  # noqa: E731
        return iterate(f, tf.constant(z0), solvers.get(name))

    solution = in_mode(solve, mode)()
    expected = [Status.NON_FINITE, Status.CONVERGED, Status.NON_FINITE]
    assert solution.status.numpy().tolist() == expected
    assert solution.steps.numpy()[[0, 2]].tolist() == [1, 1]
    np.testing.assert_array_equal(solution.residual.numpy()[[0, 2]], [np.finfo("float32").max] * 2)


# --- batch invariance -------------------------------------------------------------------------------

_FUNCTIONS = {}


def _batched_solver(name, mode):
    """One function per solver and mode, so that known shapes are not compiled again."""
    if (name, mode) not in _FUNCTIONS:
        solver = solvers.get(name, max_steps=25, tolerance=1e-3)

        def solve(x, a, tolerance):
            return iterate(lambda z: _hostile(z, a, x), tf.zeros_like(x), solver, tolerance)

        _FUNCTIONS[name, mode] = in_mode(solve, mode)
    return _FUNCTIONS[name, mode]


def _assert_same_sample(one, row, other, other_row, rtol=1e-5, atol=1e-6):
    for field in ("steps", "status"):
        assert getattr(one, field)[row] == getattr(other, field)[other_row], field
    # A different batch size may sum in another order. One unit in the last place of z changes the
    # residual, which is relative to the size of z, by 1e-7, independent of its own size: hence
    # atol.
    np.testing.assert_allclose(one.z[row], other.z[other_row], rtol=rtol, atol=atol)
    residuals = one.residual[row], other.residual[other_row]
    np.testing.assert_allclose(*residuals, rtol=max(rtol, 1e-6), atol=atol)  # they are float32


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", fast(["anderson"], SOLVERS))
def test_a_sample_is_the_same_in_any_company(name, mode):
    """Alone, first, last, in the middle, and next to samples that diverge or are NaN."""
    a, x = _tanh_case(6, seed=3)
    x[4], x[5] = 1e18, np.nan
    x[2] *= 0.01
    solve = _batched_solver(name, mode)
    tolerance = np.full(6, 1e-3, "float32")
    together = solve(x, a, tolerance)
    assert together.status[4] != Status.CONVERGED
    assert together.status[5] == Status.NON_FINITE
    assert len(set(together.steps.numpy()[:4])) > 1, "samples that stop at different times"
    reverse = solve(x[::-1].copy(), a, tolerance)
    for sample in range(6):
        alone = solve(x[sample : sample + 1], a, tolerance[:1])
        _assert_same_sample(alone, 0, together, sample)
        _assert_same_sample(reverse, 5 - sample, together, sample)


@pytest.mark.parametrize("name", fast(["anderson"], SOLVERS))
@hypothesis.given(
    seed=strategies.integers(0, 2**31),
    gain=strategies.floats(0.1, 1.5),
    order=strategies.permutations(range(6)),
    poison=strategies.sampled_from([0.5, 1e18, np.nan, np.inf, -1e30]),
    exponents=strategies.lists(strategies.integers(1, 3), min_size=6, max_size=6),
)
@hypothesis.example(
    seed=0, gain=1.5, order=list(range(6)), poison=0.5, exponents=[1, 3, 1, 1, 1, 1]
)
@hypothesis.settings(max_examples=6)
def test_batch_invariance_holds_for_any_batch(name, seed, gain, order, poison, exponents):
    # In float64, because if f is not a contraction, an Anderson step may amplify rounding a
    # thousand times.
    a, x = _tanh_case(6, seed, gain, "float64")
    x[5] = poison
    tolerance = 10.0 ** -np.array(exponents, "float64")
    tight = {"rtol": 1e-9, "atol": 1e-9}
    order = np.array(order)
    solve = _batched_solver(name, "graph")
    together = solve(x, a, tolerance)
    shuffled = solve(x[order], a, tolerance[order])
    pair = solve(x[order[:2]], a, tolerance[order[:2]])
    for position, sample in enumerate(order):
        _assert_same_sample(shuffled, position, together, sample, **tight)
        if position < 2:
            _assert_same_sample(pair, position, together, sample, **tight)


# --- states -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", fast(["anderson"], SOLVERS))
def test_nest_solves_as_the_one_matrix_it_stands_for(name, mode):
    a, x = _tanh_case(3, dtype="float64")
    split = lambda z: {"p": tf.reshape(z[:, :4], [-1, 2, 2]), "q": (z[:, 4:],)}  # noqa: E731
    join = lambda z: tf.concat([tf.reshape(z["p"], [-1, 4]), z["q"][0]], axis=1)  # noqa: E731
    solver = solvers.get(name, tolerance=1e-6, max_steps=60)

    def solve():
        flat = iterate(lambda z: tanh_cell(z, a, x), tf.zeros_like(x), solver)
        nest = iterate(lambda z: split(tanh_cell(join(z), a, x)), split(tf.zeros_like(x)), solver)
        return flat, nest

    flat, nest = in_mode(solve, mode)()
    assert flat.converged.numpy().all()
    assert nest.z["p"].shape == [3, 2, 2]
    np.testing.assert_allclose(join(nest.z), flat.z, rtol=1e-9)
    np.testing.assert_array_equal(nest.steps, flat.steps)
    np.testing.assert_allclose(nest.residual, flat.residual, rtol=1e-5)


@pytest.mark.parametrize("name", fast(["anderson", "broyden", "gmres"], SOLVERS))
def test_shapes_that_are_known_only_when_it_runs(name):
    @tf.function(
        autograph=False,
        input_signature=[tf.TensorSpec([None, None], tf.float32), tf.TensorSpec([], tf.int32)],
    )
    def solve(x, max_steps):
        f = lambda z: 0.5 * z + x  # noqa: E731
        return iterate(f, tf.zeros_like(x), solvers.get(name), max_steps=max_steps)

    for shape in ([1, 3], [4, 2], [0, 2]):
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        solution = solve(x, 30)
        np.testing.assert_allclose(solution.z, 2 * x, rtol=3e-3)
        assert solution.steps.shape == [shape[0]]


def test_nothing_here_carries_a_gradient():
    x = tf.ones([2, 3])
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = iterate(lambda z: 0.5 * z + x, x, solvers.get("broyden")).z
    assert tape.gradient(z, x) is None


# --- the solver's state ---------------------------------------------------------------------------


def _filled_up(array, shape):
    """Returns array [1, …] padded with zeros to [1, *shape[1:]]."""
    missing = np.subtract(shape[1:], array.shape[1:])
    return np.pad(array, [(0, 0), *((0, count) for count in missing)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name", fast(["reversible"], ["broyden", "reversible"])
)  # solvers whose states are used
def test_state_is_that_of_the_samples_last_evaluation(name, mode):
    """As if each sample had been solved alone, with its own number of evaluations."""
    a, x = _tanh_case(3, dtype="float64")
    settings = {"tolerance": 1e-12, "return_state": True}

    def solve(x, max_steps):
        solver = solvers.get(name, max_steps=8)
        f = lambda z: tanh_cell(z, a, x)  # noqa: E731
        return iterate(f, tf.zeros_like(x), solver, max_steps=max_steps, **settings)

    _, together = in_mode(solve, mode)(tf.constant(x), tf.constant([2, 8, 4]))
    for sample, steps in enumerate((2, 8, 4)):
        alone = slice(sample, sample + 1)
        # In a graph the budget is not known, and the state has room for the solver's budget.
        solution, state = in_mode(solve, "graph")(tf.constant(x[alone]), tf.constant([steps]))
        assert solution.steps.numpy().tolist() == [steps]
        for one, other in zip(tf.nest.flatten(state), tf.nest.flatten(together), strict=True):
            # Outside XLA a history has only the rows that were needed; here it is padded with
            # zeros.
            one = _filled_up(one.numpy(), other.shape)
            # Rounding differs between eager and graph mode, amplified by small systems with small
            # steps.
            np.testing.assert_allclose(one[0], other[sample], rtol=1e-6, atol=1e-9)
