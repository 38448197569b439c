"""Tests of when a solve without progress ends, and when it does not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from benchmarks.engine.patience import increment
from benchmarks.engine.problems import affine
from tests.core.iteration_test import ONE_EVALUATION, _tanh_case
from tests.support.cases import GENERAL, MODES, fast, in_mode, tanh_cell
from tfdeq import solvers
from tfdeq.cells import weight_tied
from tfdeq.iteration import iterate
from tfdeq.numerics.loop_state import FLOOR_STEPS

Status = tfdeq.Status


def _case(length):
    """Returns a sample whose carry travels all the way, and one whose carry stops at the first zero."""
    bits = np.ones([2, length], "float32")
    bits[1, length // 2 :: 3] = 0.0
    answer = np.concatenate([np.zeros([2, length]), np.ones([2, 1])], axis=1)[:, :length]
    answer[1, length // 2] = 1.0
    answer[1, length // 2 + 1 :] = bits[1, length // 2 + 1 :]
    zeros = np.zeros_like(bits)
    return bits, {"sum": zeros, "carry": zeros}, answer


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", fast([64], [64, 512]))
def test_an_answer_that_travels_is_waited_for(length, mode):
    bits, z0, answer = _case(length)

    def solve(patience=None):
        solver = tfdeq.FixedPointIteration(length + 10, 1e-5, patience=patience)
        return tfdeq.fixed_point(increment, z0, (bits,), solver)

    solution = in_mode(solve, mode)()
    assert solution.converged.numpy().all()
    # Carry, sum, and the evaluation that detects convergence.
    assert solution.steps.numpy().tolist() == [length + 1, length // 2 + 2]
    np.testing.assert_array_equal(solution.z["sum"], answer)
    impatient = in_mode(lambda: solve(12), mode)()
    assert (impatient.status.numpy() == Status.STAGNATED).all()
    assert (impatient.steps.numpy() < 20).all()


@pytest.mark.parametrize("name", fast(["anderson"], GENERAL))
def test_every_solver_waits_for_an_answer_that_travels(name):
    """No method stagnates on the way, for any number of evaluations per place."""
    bits, z0, answer = _case(64)
    room = {"krylov_steps": 130} if solvers.REGISTRY[name].uses_products else {}
    solver = solvers.get(name, max_steps=1000, tolerance=1e-5, **room)
    solve = lambda: tfdeq.fixed_point(increment, z0, (bits,), solver)  # noqa: E731
    solution = in_mode(solve, "graph")()
    assert solution.converged.numpy().all()
    np.testing.assert_allclose(solution.z["sum"], answer, atol=1e-3)


@pytest.mark.parametrize("seed", fast([0], range(3)))
@pytest.mark.parametrize("normal", [True, False])
def test_broyden_solves_what_expands(normal, seed):
    """Affine maps of 40 unknowns and spectral radius 1.5; scipy's best method needs 97 and 433."""
    problem = affine(1.5, normal, seed=seed)
    solver = tfdeq.Broyden(max_steps=150, tolerance=1e-8)
    start = tf.constant(problem.start[None])
    f = lambda z: problem.f(tf.experimental.numpy, z)  # noqa: E731
    solution = tf.function(lambda: iterate(f, start, solver), autograph=False)()
    assert solution.converged.numpy().all()
    assert int(solution.steps[0]) <= 97


@pytest.mark.parametrize(
    ("count", "gain", "activation"),
    fast(
        [(20, 2.0, "linear")],
        [(20, 1.0, "relu"), (20, 2.0, "linear"), (24, 2.0, "relu"), (30, 1.3, "linear")],
    ),
)
def test_a_weight_tied_stack_is_exact_whatever_its_activations(count, gain, activation):
    """The residual of the state is constant while layer after layer becomes exact."""
    layers = [
        keras.layers.Dense(
            8, activation, use_bias=False, kernel_initializer=keras.initializers.Orthogonal(gain)
        )
        for _ in range(count)
    ]
    x = tf.random.stateless_normal([2, 8], [1, 2])
    layer = tfdeq.DEQLayer(weight_tied(layers), tfdeq.FixedPointIteration(count + 5, 1e-6))
    solution = layer(x, return_solution=True)
    assert solution.converged.numpy().all()
    assert (solution.steps.numpy() <= count + 1).all()
    np.testing.assert_array_equal(solution.z[-1], keras.Sequential(layers)(x))


# --- what is certain ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("period", fast([2, 7], [2, 3, 7]))
def test_plain_iteration_that_comes_back_is_ended(period, mode):
    """A rotation of a regular polygon's corners, exact in floating point."""
    shift = np.roll(np.eye(period, dtype="float32"), 1, axis=1)
    z0 = np.arange(2 * period, dtype="float32").reshape(2, period)

    def solve(f, solver):
        return in_mode(lambda: iterate(f, tf.constant(z0), solver), mode)()

    solver = tfdeq.FixedPointIteration(max_steps=100, tolerance=1e-4)
    solution = solve(lambda z: tf.matmul(z, shift), solver)
    assert (solution.status.numpy() == Status.STAGNATED).all()
    assert (solution.steps.numpy() <= 2 * period).all()
    # The same residual in each step, but at other states: no iterate recurs.
    away = solve(lambda z: z + 1.0, solver)
    assert (away.status.numpy() == Status.MAX_STEPS).all()


@pytest.mark.parametrize("name", fast(["anderson", "fixed_point_iteration"], ONE_EVALUATION))
def test_below_the_precision_of_the_dtype_it_stagnates(name):
    a, x = _tanh_case(2)
    solver = solvers.get(name, max_steps=500, tolerance=1e-12)

    # Bits that flip forever: there is no exact fixed point in float32.
    def flip(z):
        f_z = tanh_cell(z, a, x)
        return f_z + tf.where(z > f_z, -6e-8, 6e-8)

    solution = iterate(flip, tf.zeros_like(x), solver)
    assert (solution.residual.numpy() < 4.8e-7).all()
    assert (solution.status.numpy() == Status.STAGNATED).all()
    assert (solution.steps.numpy() < 100).all()


# --- patience ----------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tfdeq_tests")
class IncrementCell(keras.layers.Layer):
    def initial_state(self, x):
        return {"sum": tf.zeros_like(x), "carry": tf.zeros_like(x)}

    def call(self, z, x):
        return increment(z, x)


@pytest.mark.parametrize("mode", MODES)
def test_patience_of_solver_call_and_layer(mode, tmp_path):
    """A scalar or one per sample; a patience longer than the answer's way has no effect."""
    bits, z0, _ = _case(64)
    settings = {"max_steps": 80, "tolerance": 1e-5}
    expected = [Status.STAGNATED, Status.CONVERGED]

    def call(patience, solver):
        return tfdeq.fixed_point(
            increment, z0, (bits,), solver, patience=patience, batched_args=[0]
        )

    patient, impatient = (tfdeq.FixedPointIteration(**settings, patience=p) for p in (None, 12))
    run = in_mode(call, mode)
    assert run(tf.constant([12, 80]), patient).status.numpy().tolist() == expected
    assert run(tf.constant([12, 80]), impatient).status.numpy().tolist() == expected
    assert run(None, impatient).steps.numpy().max() < 20
    layer = tfdeq.DEQLayer(IncrementCell(), impatient)
    solution = layer(bits, patience=[12, 80], return_solution=True)
    assert solution.status.numpy().tolist() == expected
    # It is saved with the solver.
    model = keras.Sequential([keras.Input((64,)), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].solver == impatient
    np.testing.assert_array_equal(loaded(bits)["sum"], layer(bits)["sum"])


def test_products_are_no_iterates():
    """The products of a Krylov method do not count as iterates without progress."""
    problem = affine(0.99, normal=True)
    f = lambda z: problem.f(tf.experimental.numpy, z)  # noqa: E731
    solver = tfdeq.NewtonKrylov(200, 1e-8, krylov_steps=60, patience=1)
    assert iterate(f, tf.constant(problem.start[None]), solver).converged.numpy().all()


def test_patience_is_checked():
    for value in (0, 2.5, -1, True):
        with pytest.raises(ValueError, match="patience must be an integer of at least 1"):
            tfdeq.Broyden(patience=value)
    with pytest.raises(ValueError, match="patience must be at least 1 for every sample"):
        tfdeq.fixed_point(lambda z: 0.5 * z, tf.ones([2, 1]), patience=0)


def test_floor_steps_are_those_of_the_documents():
    assert FLOOR_STEPS == 12
