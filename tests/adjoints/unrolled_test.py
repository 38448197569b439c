"""Tests of tfdeq.adjoints.unrolled: backpropagation through the last applications."""

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import MODES, Recorder, fast, in_mode, linear_case, tanh_cell

PLAIN = tfdeq.FixedPointIteration(max_steps=7, tolerance=1e-13)


def _case(radius=0.6):
    return tuple(map(tf.constant, linear_case(radius=radius, seed=8)))


def _gradients(adjoint, solver=PLAIN, mode="eager", max_steps=None):
    """z, Solution and the gradients of Σ z³ with respect to A and x."""

    def run(a, x):
        with tf.GradientTape() as tape:
            tape.watch([a, x])
            solution = tfdeq.fixed_point(
                tanh_cell, tf.zeros_like(x), (a, x), solver, adjoint, max_steps=max_steps
            )
            loss = tf.reduce_sum(solution.z**3)
        return solution, tape.gradient(loss, [a, x])

    return in_mode(run, mode)(*_case())


def _backpropagated(applications, recorded):
    """Returns the same by a tape; [B] applications from zeros, of which the last `recorded` are recorded."""
    a, x = _case()
    with tf.GradientTape() as tape:
        tape.watch([a, x])
        rows = []
        for row, count in enumerate(applications):
            z = tf.zeros_like(x[:1])
            for k in range(count):
                z = tanh_cell(z, a, x[row : row + 1])
                if k < count - recorded:
                    z = tf.stop_gradient(z)
            rows.append(z)
        z = tf.concat(rows, axis=0)
        loss = tf.reduce_sum(z**3)
    return z, tape.gradient(loss, [a, x])


def _assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("checkpointed", fast([True], [True, False]))
@pytest.mark.parametrize("mode", MODES)
def test_all_steps_are_plain_backpropagation_from_z0(mode, checkpointed):
    solution, gradients = _gradients(tfdeq.Unrolled(7, checkpointed), mode=mode)
    z, expected = _backpropagated([7] * 3, 7)
    _assert_equal([solution.z, *gradients], [z, *expected])
    assert solution.steps.numpy().tolist() == [8] * 3
    assert solution.status.numpy().tolist() == [tfdeq.Status.MAX_STEPS] * 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", fast([4], [1, 4, 6]))
def test_the_answer_is_that_of_plain_iteration_whatever_is_recorded(mode, steps):
    solution, gradients = _gradients(tfdeq.Unrolled(steps), mode=mode)
    z, expected = _backpropagated([7] * 3, steps)
    _assert_equal([solution.z, *gradients], [z, *expected])
    assert solution.steps.numpy().tolist() == [8] * 3


@pytest.mark.parametrize("mode", MODES)
def test_each_sample_has_its_own_number_of_applications(mode):
    budgets = [2, 4, 9]
    z, expected = _backpropagated(budgets, 4)
    for max_steps in (budgets, tf.constant(budgets)):
        solution, gradients = _gradients(tfdeq.Unrolled(4), mode=mode, max_steps=max_steps)
        _assert_equal([solution.z, *gradients], [z, *expected])
        assert solution.steps.numpy().tolist() == [3, 5, 10]


def test_max_steps_known_at_run_time_only():
    a, x = _case()

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.int32)])
    def run(max_steps):
        with tf.GradientTape() as tape:
            tape.watch(a)
            z = tfdeq.fixed_point(
                tanh_cell, tf.zeros_like(x), (a, x), PLAIN, tfdeq.Unrolled(4), max_steps=max_steps
            ).z
            loss = tf.reduce_sum(z**3)
        return tape.gradient(loss, a)

    _assert_equal([run(tf.constant([2, 4, 9]))], _backpropagated([2, 4, 9], 4)[1][:1])


def test_residual_and_steps_against_a_record():
    a, x = _case()
    record = Recorder(lambda z: tanh_cell(z, a, x))
    solver = tfdeq.Broyden(max_steps=12, tolerance=1e-6)
    solution = tfdeq.fixed_point(record, tf.zeros_like(x), (), solver, tfdeq.Unrolled(3))
    assert len(record.states) == solution.steps.numpy().max()
    f_z = tanh_cell(solution.z, a, x)
    residual = np.linalg.norm(f_z - solution.z, axis=1) / np.linalg.norm(f_z, axis=1)
    np.testing.assert_allclose(solution.residual, residual, rtol=1e-6)
    assert solution.converged.numpy().all()


def test_error_falls_with_the_steps():
    exact = _gradients("implicit", tfdeq.Broyden(60, 1e-13))[1]
    errors = []
    for steps in (2, 10, 40):
        found = _gradients(tfdeq.Unrolled(steps), tfdeq.Broyden(60, 1e-13))[1]
        errors.append(max(np.abs(np.subtract(*pair)).max() for pair in zip(found, exact)))  # noqa: B905
    assert errors[0] > 30 * errors[1]
    # ‖J‖ <= 0.6, so the omitted terms are below 0.6^40 / 0.4 = 3e-9.
    assert errors[2] < 1e-8


@pytest.mark.parametrize("mode", MODES)
def test_second_derivative_is_that_of_the_applications(mode):
    a, x = _case()

    def second(value):
        with tf.GradientTape() as outer:
            outer.watch(a)
            with tf.GradientTape() as inner:
                inner.watch(a)
                loss = tf.reduce_sum(value(a) ** 3)
            norm = tf.reduce_sum(inner.gradient(loss, a) ** 2)
        return outer.gradient(norm, a)

    def unrolled(a):
        z0 = tf.zeros_like(x)
        return tfdeq.fixed_point(tanh_cell, z0, (a, x), PLAIN, tfdeq.Unrolled(7)).z

    def plain(a):
        z = tf.zeros_like(x)
        for _ in range(7):
            z = tanh_cell(z, a, x)
        return z

    _assert_equal([in_mode(lambda: second(unrolled), mode)()], [second(plain)])


def test_a_sample_that_is_not_finite_leaves_the_others_alone():
    x = tf.constant([[0.5], [np.nan]])
    solution = tfdeq.fixed_point(
        lambda z, x: 0.5 * z + x, tf.zeros_like(x), (x,), PLAIN, "unrolled"
    )
    assert solution.status.numpy().tolist() == [tfdeq.Status.MAX_STEPS, tfdeq.Status.NON_FINITE]
    assert np.isfinite(solution.z).all()


class _Probe:
    """Counts the applications whose intermediates are alive: a tape holds a token of each."""

    def __init__(self):
        self.tokens: list[weakref.ref] = []
        self.most = 0
        # Existing objects are frozen, because each count collects garbage.
        gc.collect()
        gc.freeze()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        gc.unfreeze()

    def alive(self):
        gc.collect()
        return sum(token() is not None for token in self.tokens)

    def __call__(self, z):
        class Token:
            pass

        @tf.custom_gradient
        def mark(z):
            token = Token()
            self.tokens.append(weakref.ref(token))

            def gradient(d_z):
                assert token is not None
                return d_z

            return tf.identity(z), gradient

        result = mark(z)
        self.most = max(self.most, self.alive())
        return result


@pytest.mark.parametrize(("checkpointed", "held"), [(True, 0), (False, 7)])
def test_what_is_kept_for_the_backward_pass(checkpointed, held):
    a, x = _case()
    with _Probe() as probe:
        with tf.GradientTape() as tape:
            tape.watch(a)
            z = tfdeq.fixed_point(
                lambda z, a, x: probe(tanh_cell(z, a, x)),
                tf.zeros_like(x),
                (a, x),
                PLAIN,
                tfdeq.Unrolled(7, checkpointed),
            ).z
        assert probe.alive() == held
        probe.most = 0
        tape.gradient(z, a)
        assert probe.most <= 1, "one interior at a time is computed again"


@pytest.mark.slow
def test_xla_does_not_merge_the_recomputation_with_the_first_one():
    a, x = _case()

    def products(adjoint):
        @tf.function(jit_compile=True, autograph=False)
        def run(a, x):
            with tf.GradientTape() as tape:
                tape.watch(a)
                z = tfdeq.fixed_point(tanh_cell, tf.zeros_like(x), (a, x), PLAIN, adjoint).z
            return tape.gradient(z, a)

        return run.experimental_get_compiler_ir(a, x)(stage="optimized_hlo").count(" dot(")

    # The first application of each is from zeros, which a compiler may fold.
    assert products(tfdeq.Unrolled(7)) - products(tfdeq.Unrolled(7, False)) >= 6


@pytest.mark.parametrize("steps", [0, 1.5, None])
def test_settings_are_checked(steps):
    with pytest.raises(
        ValueError, match=f"steps must be an integer of at least 1; received {steps}"
    ):
        tfdeq.Unrolled(steps)


def test_output_unlike_z_is_refused():
    x = tf.zeros([2, 3])
    with pytest.raises(ValueError, match="must return the structure, shapes and dtypes of z"):
        tfdeq.fixed_point(lambda z: z[:, :2], x, (), PLAIN, "unrolled")


def test_hidden_variables_are_refused():
    weight = tf.Variable(0.5)
    with pytest.raises(ValueError, match="f reads trainable variables that are not in args"):
        tfdeq.fixed_point(lambda z: weight * z + 1.0, tf.zeros([2, 3]), (), PLAIN, "unrolled")
