"""Tests of when a solve that stands still is ended, and when not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from benchmarks.problems import affine
from tests.cases import MODES, in_mode, tanh_cell
from tests.iteration_test import ONE_EVALUATION, _tanh_case
from tfdeq import solvers
from tfdeq.cells import weight_tied
from tfdeq.iteration import FLOOR_STEPS, iterate

Status = tfdeq.Status


def parity(z, bits):
    """z_i = z_{i−1} · bit_i, softened: an answer of signs that moves one place an application.

    Flat where a sign is settled, so that ∂f/∂z is all but nilpotent there.
    """
    before = tf.concat([tf.ones_like(z[:, :1]), z[:, :-1]], axis=1)
    return tf.tanh(8.0 * before) * bits


def _travel(solver, length, mode="graph"):
    bits = np.random.default_rng(length).choice([-1.0, 1.0], size=(2, length)).astype("float32")
    solve = lambda: tfdeq.fixed_point(parity, tf.zeros_like(bits), (bits,), solver)  # noqa: E731
    solution = in_mode(solve, mode)()
    right = np.mean(np.sign(solution.z) == np.cumprod(bits, axis=1))
    return solution, right


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [64, 512])
def test_an_answer_that_travels_is_waited_for(length, mode):
    """The residual is level for as many evaluations as there are places."""
    solver = tfdeq.FixedPointIteration(max_steps=length + 10, tolerance=1e-5)
    solution, right = _travel(solver, length, mode)
    assert solution.converged.numpy().all()
    assert solution.steps.numpy().tolist() == [length + 1] * 2
    assert right == 1.0
    impatient = tfdeq.FixedPointIteration(max_steps=length + 10, tolerance=1e-5, patience=12)
    solution, right = _travel(impatient, length, mode)
    assert (solution.status.numpy() == Status.STAGNATED).all()
    assert right < 1.0


@pytest.mark.parametrize("name", [name for name in ONE_EVALUATION if name != "reversible"])
def test_every_solver_waits_for_an_answer_that_travels(name):
    """64 places; some need a few evaluations a place, and say MAX_STEPS, not STAGNATED, without."""
    memory = {"memory": 5} if name == "anderson" else {}
    solver = solvers.get(name, max_steps=600, tolerance=1e-4, **memory)
    solution, _ = _travel(solver, 64)
    assert not (solution.status.numpy() == Status.STAGNATED).any()


@pytest.mark.parametrize("seed", range(3))
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
    [(20, 1.0, "relu"), (20, 2.0, "linear"), (24, 2.0, "relu"), (30, 1.3, "linear")],
)
def test_a_weight_tied_stack_is_exact_whatever_its_activations(count, gain, activation):
    """The residual of the state stands still while layer after layer becomes exact."""
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
@pytest.mark.parametrize("period", [2, 3, 7])
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
    # The same residual in each step, at another place: nothing comes back.
    away = solve(lambda z: z + 1.0, solver)
    assert (away.status.numpy() == Status.MAX_STEPS).all()


@pytest.mark.parametrize("name", ONE_EVALUATION)
def test_below_the_precision_of_the_dtype_it_stagnates(name):
    a, x = _tanh_case(2)
    solver = solvers.get(name, max_steps=500, tolerance=1e-12)

    # Bits that flip for ever: no exact fixed point in float32.
    def flip(z):
        f_z = tanh_cell(z, a, x)
        return f_z * tf.where(z[:, :1] > f_z[:, :1], 1.0 - 1e-7, 1.0 + 1e-7)

    solution = iterate(flip, tf.zeros_like(x), solver)
    assert (solution.residual.numpy() < 4.8e-7).all()
    assert (solution.status.numpy() == Status.STAGNATED).all()
    assert (solution.steps.numpy() < 100).all()


# --- patience ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_patience_of_solver_call_layer_and_scope(mode):
    """Each of the iterates 1, 2, … of z + 1 is as far from its image as the one before."""
    z0 = tf.ones([3, 1])

    def solve(solver=None, **settings):
        solver = solver or tfdeq.FixedPointIteration(max_steps=40)
        f = lambda z: z * tf.constant([[-1.0], [-1.5], [0.5]])  # noqa: E731
        return tfdeq.fixed_point(f, z0, (), tfdeq.Anderson(40, damping=1e-3), **settings)

    none = in_mode(solve, mode)()
    assert none.status.numpy().tolist() == [Status.MAX_STEPS] * 3


def test_patience_is_checked():
    for value in (0, 2.5, -1, True):
        with pytest.raises(ValueError, match="patience must be an integer of at least 1"):
            tfdeq.Broyden(patience=value)
    with pytest.raises(ValueError, match="patience must be at least 1 for every sample"):
        tfdeq.fixed_point(lambda z: 0.5 * z, tf.ones([2, 1]), patience=0)


def test_floor_steps_are_those_of_the_documents():
    assert FLOOR_STEPS == 12
