"""Tests of tfdeq.fixed_point: the value, and the gradients of linear cells in closed form."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import (
    GENERAL,
    MODES,
    exact_solvers,
    fast,
    in_mode,
    linear,
    linear_case,
    tanh_cell,
)
from tfdeq import solvers

SOLVERS = exact_solvers()


def _derivatives(fixed_point, a, x):
    """z, the gradient of a function of z, and the gradient of a function of that gradient."""
    with tf.GradientTape() as outer:
        outer.watch([a, x])
        with tf.GradientTape() as inner:
            inner.watch([a, x])
            z = fixed_point(a, x)
            loss = tf.reduce_sum(tf.sin(z) + z**2)
        first = inner.gradient(loss, [a, x])
        along = tf.add_n([tf.reduce_sum(tf.sin(g) * g) for g in first])
    return z, first, outer.gradient(along, [a, x])


def _closed_form(a, x):
    return tf.matmul(x, tf.linalg.inv(tf.eye(a.shape[0], dtype=a.dtype) - a))


def _assert_derivatives(received, expected):
    np.testing.assert_allclose(received[0], expected[0], rtol=1e-10, atol=1e-10)
    for order in (1, 2):
        for one, other in zip(received[order], expected[order], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-7)


@pytest.mark.slow  # nests have it too
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", fast(["broyden"], SOLVERS))
def test_linear_cell_to_second_order(name, mode):
    a, x = map(tf.constant, linear_case())

    def derivatives(a, x):
        def solve(a, x):
            return tfdeq.fixed_point(linear, tf.zeros_like(x), (a, x), SOLVERS[name]).z

        return _derivatives(solve, a, x)

    _assert_derivatives(in_mode(derivatives, mode)(a, x), _derivatives(_closed_form, a, x))


@pytest.mark.parametrize("name", fast(["anderson", "newton_krylov"], SOLVERS))
def test_linear_cell_reaches_1e_10_from_anywhere(name):
    """A symmetric, an asymmetric and a nilpotent A, from a random start."""
    a, x = linear_case(batch=5, size=6, radius=0.6, seed=1)
    z0 = 10.0 * np.random.default_rng(2).normal(size=x.shape)
    for matrix in (a, (a + a.T) / 2, np.triu(a, 1)):
        solution = tfdeq.fixed_point(linear, z0, (matrix, x), SOLVERS[name])
        assert solution.converged.numpy().all(), name
        expected = np.linalg.solve((np.eye(6) - matrix).T, x.T).T
        np.testing.assert_allclose(solution.z, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_nests_to_second_order(mode):
    """State {p, (q,)} and args {a, x} instead of matrices, with the same closed form."""
    a, x = map(tf.constant, linear_case())
    split = lambda z: {"p": z[:, :1], "q": (z[:, 1:],)}  # noqa: E731
    join = lambda z: tf.concat([z["p"], z["q"][0]], axis=1)  # noqa: E731

    def f(z, args, shift):
        return split(linear(join(z), args["a"], args["x"]) + shift)

    def derivatives(a, x):
        def solve(a, x):
            args = ({"a": a, "x": x}, tf.zeros([], tf.float64))
            return join(tfdeq.fixed_point(f, split(tf.zeros_like(x)), args, SOLVERS["broyden"]).z)

        return _derivatives(solve, a, x)

    _assert_derivatives(in_mode(derivatives, mode)(a, x), _derivatives(_closed_form, a, x))


def test_names_objects_and_defaults_agree():
    a, x = linear_case()
    by_default = tfdeq.fixed_point(linear, tf.zeros_like(x), (a, x))
    by_name = tfdeq.fixed_point(linear, tf.zeros_like(x), (a, x), "broyden", "implicit")
    by_object = tfdeq.fixed_point(
        linear, tf.zeros_like(x), (a, x), tfdeq.Broyden(), tfdeq.Implicit()
    )
    for other in (by_name, by_object):
        for one, two in zip(by_default, other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_single_argument_needs_no_tuple():
    x = tf.ones([2, 3])
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = tfdeq.fixed_point(lambda z, x: 0.5 * z + x, tf.zeros_like(x), x).z
    np.testing.assert_allclose(tape.gradient(z, x), np.full([2, 3], 2.0), rtol=2e-3)


def test_tolerance_and_budget_reach_the_solver():
    a, x = linear_case(batch=2)
    solution = tfdeq.fixed_point(
        linear,
        tf.zeros_like(x),
        (a, x),
        "fixed_point_iteration",
        tolerance=[1e-1, 1e-9],
        max_steps=tf.constant([50, 5]),
    )
    statuses = [tfdeq.Status.CONVERGED, tfdeq.Status.MAX_STEPS]
    assert solution.status.numpy().tolist() == statuses


def test_gradient_of_a_sample_is_its_own():
    """The gradient of sample 0 does not change when its neighbour diverges or is NaN."""
    a, x = linear_case(batch=3)

    def gradient(x):
        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = tfdeq.fixed_point(linear, tf.zeros_like(x), (a, x), SOLVERS["anderson"]).z
            loss = tf.reduce_sum(z**2, axis=1)
        return tape.gradient(loss, x).numpy()

    clean = gradient(x)
    x[1] = np.nan
    dirty = gradient(x)
    np.testing.assert_allclose(dirty[[0, 2]], clean[[0, 2]], rtol=1e-10)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"solver": "newton"}, ValueError, "Unknown solver 'newton'. Known solvers: .*broyden"),
        ({"adjoint": "magic"}, ValueError, "Unknown adjoint 'magic'. Known adjoints: .*implicit"),
        ({"solver": 3}, TypeError, "solver must be a name or a tfdeq solver object; received 3"),
        ({"adjoint": 3}, TypeError, "adjoint must be a name or a tfdeq adjoint object; received 3"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be greater than 0.*received 0"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1.*received 0"),
    ],
)
def test_bad_settings(settings, error, message):
    x = tf.ones([2, 3])
    with pytest.raises(error, match=message):
        tfdeq.fixed_point(lambda z, x: 0.5 * z + x, x, (x,), **settings)


@pytest.mark.parametrize("mode", MODES)
def test_output_unlike_the_state(mode):
    x = tf.ones([2, 3])
    solve = in_mode(lambda x: tfdeq.fixed_point(lambda z, x: z[:, :1], x, (x,)), mode)
    with pytest.raises(ValueError, match=r"z: \(2, 3\) float32; f returned: \(2, 1\) float32"):
        solve(x)


def test_trainable_variables_closed_over():
    weight = tf.Variable(0.5, name="weight")
    x = tf.ones([2, 3])
    f = lambda z, x: weight * z + x  # noqa: E731
    with pytest.raises(ValueError, match=r"not in args \(weight.*Pass them, f\(z, \*args\)"):
        tfdeq.fixed_point(f, x, (x,))
    # As an argument it is differentiated: z = x / (1 - w), dz/dw = x / (1 - w)^2.
    with tf.GradientTape() as tape:
        z = tfdeq.fixed_point(
            lambda z, x, w: w * z + x, x, (x, weight), tfdeq.Broyden(tolerance=1e-6)
        ).z
    np.testing.assert_allclose(tape.gradient(z, weight), 6 * 4.0, rtol=1e-4)


def test_stopped_variables_may_be_closed_over_as_the_error_says():
    weight = tf.Variable(0.5)
    stopped = tf.stop_gradient(weight)
    x = tf.ones([2, 3])
    solution = tfdeq.fixed_point(lambda z, x: stopped * z + x, x, (x,))
    np.testing.assert_allclose(solution.z, np.full([2, 3], 2.0), rtol=2e-3)


# --- iterates on request ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", fast(["broyden"], GENERAL))
def test_iterates_are_what_smaller_budgets_return(name, mode):
    """For each sample, including samples that have already converged."""
    a, x = map(tf.constant, linear_case(batch=3, radius=0.8, seed=2))
    tolerance = tf.constant([1e-1, 1e-3, 1e-9])
    numbers = (7, 1, 3)

    def solve(max_steps=20, **settings):
        return tfdeq.fixed_point(
            tanh_cell, tf.zeros_like(x), (a, x), name, "implicit", tolerance, max_steps, **settings
        )

    solution = in_mode(lambda: solve(iterates=numbers, batched_args=[1]), mode)()
    np.testing.assert_allclose(solution.z, solve().z, rtol=1e-9)
    for number, state in zip(numbers, solution.iterates, strict=True):
        np.testing.assert_allclose(state, solve(number).z, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "adjoint",
    fast(["implicit", "jacobian_free"], ["implicit", "jacobian_free", "phantom_gradient"]),
)
def test_iterates_have_the_gradient_of_the_rule(adjoint):
    """The same as that of the adjoint for a solve that stops there."""
    a, x = map(tf.constant, linear_case(batch=2, radius=0.5, seed=2))
    gradients = []
    for corrected in (True, False):
        with tf.GradientTape() as tape:
            tape.watch(x)
            settings = {"solver": tfdeq.Anderson(tolerance=1e-12), "adjoint": adjoint}
            if corrected:
                settings["iterates"] = [3]
            else:
                settings["max_steps"] = 3
            result = tfdeq.fixed_point(tanh_cell, tf.zeros_like(x), (a, x), **settings)
            loss = tf.reduce_sum((result.iterates[0] if corrected else result.z) ** 2)
        gradients.append(tape.gradient(loss, x))
    np.testing.assert_allclose(*gradients, rtol=1e-8)


def test_iterates_that_cannot_be():
    x = tf.ones([2, 3])
    solve = lambda **settings: tfdeq.fixed_point(  # noqa: E731
        lambda z, x: 0.5 * z + x, tf.zeros_like(x), (x,), **settings
    )
    with pytest.raises(ValueError, match="at least one number of evaluations; received none"):
        solve(iterates=[])
    with pytest.raises(ValueError, match="iterates must be an integer of at least 1; received 0"):
        solve(iterates=[3, 0])
    with pytest.raises(ValueError, match="Unrolled differentiates a whole solve"):
        solve(iterates=[3], adjoint="unrolled")


@pytest.mark.parametrize("name", fast(["gmres"], ["newton_krylov", "gmres"]))
def test_iterates_of_methods_with_products_are_those_of_smaller_budgets(name):
    """The number of products depends on the budget, so each number has its own solve."""
    random = np.random.default_rng(0)
    a = random.normal(size=(8, 8))
    a = tf.constant(a * 0.9 / abs(np.linalg.eigvals(a)).max())
    b = tf.constant(random.normal(size=(3, 8)))

    def solve(**settings):
        f = lambda z, a, b: tf.tanh(z @ a) + b  # noqa: E731
        solver = solvers.get(name, max_steps=100, tolerance=1e-10)
        return tfdeq.fixed_point(f, tf.zeros_like(b), (a, b), solver, **settings)

    for number, state in zip((2, 5, 12), solve(iterates=[2, 5, 12]).iterates, strict=True):
        np.testing.assert_allclose(state, solve(max_steps=number).z, rtol=1e-12)


# --- states without entries -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("known", fast([False], [False, True]))
@pytest.mark.parametrize("name", fast(["anderson"], GENERAL))
def test_a_state_without_entries_is_an_equilibrium(name, known, mode):
    """Such as that of texts of length 0: there is nothing to solve."""

    def solve(x, a):
        solution = tfdeq.fixed_point(lambda z, a: a * z, x, (a,), solver=name)
        return solution[:4], tf.gradients(tf.reduce_sum(solution.z), a)[0]

    shape = [2, 0, 4] if known else [None, None, 4]
    specs = [tf.TensorSpec(shape), tf.TensorSpec([])]
    if mode == "eager":
        x, a = tf.zeros([2, 0, 4]), tf.constant(0.5)
        with tf.GradientTape() as tape:
            tape.watch(a)
            solution = tfdeq.fixed_point(lambda z, a: a * z, x, (a,), solver=name)
            loss = tf.reduce_sum(solution.z)
        found, gradient = solution[:4], tape.gradient(loss, a)
    else:
        function = tf.function(
            solve, input_signature=specs, jit_compile=mode == "xla", autograph=False
        )
        found, gradient = function(tf.zeros([2, 0, 4]), tf.constant(0.5))
    z, residual, steps, status = found
    assert z.shape == (2, 0, 4)
    assert residual.numpy().tolist() == [0, 0]
    assert steps.numpy().tolist() == [1, 1]
    assert status.numpy().tolist() == [tfdeq.Status.CONVERGED] * 2
    assert gradient.numpy() == 0
