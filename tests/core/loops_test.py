"""Solves inside TensorFlow's and Keras's loops have the same gradients as without a loop."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tfdeq import adjoints

COUNT, BATCH, SIZE = 2, 2, 2
RANDOM = np.random.default_rng(0)
MATRIX = np.array([[0.15, 0.1], [-0.05, 0.12]])
SHIFT = 0.3 * RANDOM.normal(size=(BATCH, SIZE))
ELEMENTS = RANDOM.normal(size=(COUNT, BATCH, SIZE))
FIRST = RANDOM.normal(size=(BATCH, SIZE))
WEIGHTS = RANDOM.normal(size=(COUNT, BATCH, SIZE))

# Cheap in eager mode, and converged to rounding, because f contracts by a fifth.
ITERATION = tfdeq.FixedPointIteration(20, 1e-12)
# Every adjoint, with a solver that it supports.
RULES = {name: (rule(), ITERATION) for name, rule in adjoints.REGISTRY.items()}
RULES["reversible_backprop"] = (tfdeq.ReversibleBackprop(), tfdeq.Reversible(25, 1e-12))
RULES["shine"] = (tfdeq.Shine(), tfdeq.Broyden(12, 1e-5))
RULES["unrolled-plain"] = (tfdeq.Unrolled(4, checkpointed=False), ITERATION)
RULES["unrolled"] = (tfdeq.Unrolled(4), ITERATION)
TWICE = ("implicit", "unrolled", "unrolled-plain")


def f(z, a, x):
    return tf.tanh(tf.matmul(z, a) + x)


def solver_of(rule):
    """(a, x) -> z*"""
    adjoint, solver = RULES[rule]

    def solve(a, x):
        return tfdeq.fixed_point(f, tf.zeros_like(x), (a, x), solver, adjoint).z

    return solve


def nested(solve):
    """(a, x) -> z*, where each step of f makes a solve."""

    def outer(a, x):
        def step(z, a, x):
            return tf.tanh(0.5 * solve(a, 0.5 * z + x) + x)

        return tfdeq.fixed_point(step, tf.zeros_like(x), (a, x), ITERATION, "implicit").z

    return outer


def with_tape(solve):
    """(a, x) -> a gradient that is computed inside the loop."""

    def gradient(a, x):
        x = tf.identity(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            square = tf.reduce_sum(solve(a, x) ** 2)
        return tape.gradient(square, x)

    return gradient


def recomputed(solve):
    return lambda a, x: tf.recompute_grad(solve)(tf.convert_to_tensor(a), x)


# --- loops over (solve, a, shift, elements, first) -> [COUNT, BATCH, SIZE]; a is a variable ----------


def by_hand(solve, a, shift, elements, first):
    return tf.stack([solve(a, x + shift) + first for x in tf.unstack(elements)])


def carried_by_hand(solve, a, shift, elements, first):
    states = [first]
    for x in tf.unstack(elements):
        states.append(solve(a, x + shift + 0.5 * states[-1]))
    return tf.stack(states[1:])


def map_fn(solve, a, shift, elements, first):
    return tf.map_fn(lambda x: solve(a, x + shift) + first, elements)


def map_fn_of_function(solve, *inputs):
    return map_fn(tf.function(solve, autograph=False), *inputs)


def while_loop(solve, a, shift, elements, first):
    def body(k, results):
        return k + 1, results.write(k, solve(a, elements[k] + shift) + first)

    results = tf.TensorArray(elements.dtype, COUNT, element_shape=first.shape)
    return tf.while_loop(
        lambda k, _: k < COUNT, body, (tf.constant(0), results), maximum_iterations=COUNT
    )[1].stack()


def loop_in_loop(solve, a, shift, elements, first):
    return tf.map_fn(lambda part: map_fn(solve, a, shift, part, first), elements[:, None])[:, 0]


def cond(solve, a, shift, elements, first):
    def one(x):
        return tf.cond(tf.reduce_sum(x) < 1e9, lambda: solve(a, x + shift) + first, lambda: x)

    return tf.stack([one(x) for x in tf.unstack(elements)])


def cond_in_loop(solve, a, shift, elements, first):
    def one(x):
        return tf.cond(tf.reduce_sum(x) < 1e9, lambda: solve(a, x + shift) + first, lambda: x)

    return tf.map_fn(one, elements)


def switch_case(solve, a, shift, elements, first):
    def one(k):
        x = elements[k]
        branches = [lambda: x, lambda: solve(a, x + shift) + first]
        return tf.switch_case(tf.constant(1), branches)

    return tf.stack([one(k) for k in range(COUNT)])


def scan(solve, a, shift, elements, first):
    return tf.scan(lambda state, x: solve(a, x + shift + 0.5 * state), elements, first)


def carried_while_loop(solve, a, shift, elements, first):
    def body(k, state, results):
        state = solve(a, elements[k] + shift + 0.5 * state)
        return k + 1, state, results.write(k, state)

    results = tf.TensorArray(elements.dtype, COUNT, element_shape=first.shape)
    start = (tf.constant(0), first, results)
    return tf.while_loop(lambda k, *_: k < COUNT, body, start, maximum_iterations=COUNT)[2].stack()


class SolvingCell(keras.layers.Layer):
    """An RNN's cell whose next state is an equilibrium."""

    def __init__(self, solve, a, shift):
        super().__init__(dtype="float64")
        self.solve, self.a, self.shift = solve, a, shift
        self.state_size = SIZE

    def call(self, inputs, states):
        state = self.solve(self.a, inputs + self.shift + 0.5 * states[0])
        return state, [state]


def rnn(solve, a, shift, elements, first):
    layer = keras.layers.RNN(SolvingCell(solve, a, shift), return_sequences=True, dtype="float64")
    found = layer(tf.transpose(elements, [1, 0, 2]), initial_state=[first])
    return tf.transpose(found, [1, 0, 2])


LOOPS = (map_fn, map_fn_of_function, while_loop, loop_in_loop, cond, cond_in_loop, switch_case)
CARRYING = (scan, carried_while_loop, rnn)


def gradients(loop, solve, mode, twice=False):
    """Returns values, and gradients of a variable, a tensor, the elements and the first state."""
    a = tf.Variable(MATRIX)

    def values(*tensors):
        return loop(solve, a, *tensors)

    if mode == "function":  # the loop in a graph, the tape outside
        values = tf.function(values, autograph=False)

    def once(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            found = values(*tensors)
            loss = tf.reduce_sum(WEIGHTS * found)
        return found, *tape.gradient(loss, [a, *tensors], unconnected_gradients="zero")

    def and_again(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            first = once(*tensors)
            along = tf.add_n([tf.reduce_sum(tf.sin(one)) for one in first[1:]])
        return *first, *tape.gradient(along, [a, *tensors], unconnected_gradients="zero")

    compute = and_again if twice else once
    if mode in ("graph", "xla"):
        compute = tf.function(compute, autograph=False, jit_compile=mode == "xla")
    return [one.numpy() for one in compute(*map(tf.constant, (SHIFT, ELEMENTS, FIRST)))]


@functools.cache
def expected(rule, carried, inner=None, twice=False):
    loop = carried_by_hand if carried else by_hand
    return gradients(loop, (inner or (lambda solve: solve))(solver_of(rule)), "eager", twice)


def xla_cannot(loop, twice):
    """Whether XLA lacks operations for a case, and raises an error.

    These cases are tf.vectorized_map of a tf.while_loop that ends at different times for different
    elements, and second derivatives of nested loops, even with three plain steps instead of the solve.
    """
    return loop is vectorized_map or (twice and loop is loop_in_loop)


def check(loop, rule, mode, inner=None, twice=False):
    solve = (inner or (lambda solve: solve))(solver_of(rule))
    if mode == "xla" and xla_cannot(loop, twice):
        with pytest.raises(tf.errors.InvalidArgumentError, match="compil"):
            gradients(loop, solve, mode, twice)
        return
    found = gradients(loop, solve, mode, twice)
    known = expected(rule, loop in CARRYING, inner, twice)
    for one, other in zip(found, known, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)
    assert all(np.abs(one).max() > 1e-3 for one in found[:4])


MODES = ("eager", "graph", "function", "xla")


def cases(loops, rules, fast):
    """(loop, rule, mode); fast: those (loop, rule) whose graph is in the fast run."""
    return [
        pytest.param(
            *(loop, rule, mode),
            marks=[] if mode == "graph" and fast(loop, rule) else [pytest.mark.slow],
            id=f"{loop.__name__}-{rule}-{mode}",
        )
        for loop in loops
        for rule in rules
        for mode in MODES
    ]


@pytest.mark.parametrize(
    ("loop", "rule", "mode"),
    cases(
        (*LOOPS, *CARRYING),
        RULES,
        lambda loop, rule: (
            (loop is scan and rule in ("implicit", "unrolled"))
            or (rule == "implicit" and loop in (map_fn, cond_in_loop))
        ),
    ),
)
def test_first_derivatives(loop, rule, mode):
    check(loop, rule, mode)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loop", "rule", "mode"),
    cases((*LOOPS, *CARRYING), TWICE, lambda loop, rule: loop is scan and rule == "implicit"),
)
def test_second_derivatives(loop, rule, mode):
    check(loop, rule, mode, twice=True)


@pytest.mark.parametrize(
    ("loop", "rule", "mode"),
    cases((map_fn, scan), RULES, lambda loop, rule: False),
)
def test_a_solve_in_a_solve(loop, rule, mode):
    check(loop, rule, mode, nested)


@pytest.mark.parametrize(
    ("loop", "rule", "mode"),
    cases((map_fn, scan), RULES, lambda loop, rule: loop is map_fn and rule == "implicit"),
)
def test_recomputed(loop, rule, mode):
    check(loop, rule, mode, recomputed)


@pytest.mark.parametrize(
    ("loop", "rule", "mode"),
    cases(
        (map_fn, scan, rnn),
        [rule for rule in RULES if rule != "reversible_backprop"],
        lambda loop, rule: loop is map_fn and rule == "implicit",
    ),
)
def test_a_tape_inside(loop, rule, mode):
    check(loop, rule, mode, with_tape)


@pytest.mark.parametrize(
    "loop", [pytest.param(map_fn, marks=pytest.mark.slow), scan], ids=lambda loop: loop.__name__
)
def test_finite_differences(loop):
    """Along one direction of all arguments, up to the error of a central difference with step 1e-5."""
    solve = solver_of("implicit")
    point = [MATRIX, SHIFT, ELEMENTS, FIRST]
    direction = [np.cos(3.0 * one + 1.0) for one in point]
    _, *found = gradients(loop, solve, "graph")

    def loss(step):
        moved = [one + step * along for one, along in zip(point, direction, strict=True)]
        a, *tensors = map(tf.constant, moved)
        return float(tf.reduce_sum(WEIGHTS * loop(solve, a, *tensors)))

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    along = sum(np.sum(one * other) for one, other in zip(found, direction, strict=True))
    assert along == pytest.approx(slope, rel=1e-8)


# --- tf.vectorized_map, which drops custom gradients ---------------------------------------------------


def vectorized_map(solve, a, shift, elements, first):
    return tf.vectorized_map(lambda x: solve(a, x + shift) + first, elements)


@pytest.mark.parametrize(
    ("loop", "rule", "mode"), cases([vectorized_map], RULES, lambda loop, rule: rule == "implicit")
)
@pytest.mark.slow
def test_a_gradient_from_outside_of_vectorized_map_is_refused(loop, rule, mode):
    """A zero without an error would be worse. Plain backpropagation has no custom gradient to lose."""
    solve = solver_of(rule)
    values = loop(solve, *map(tf.constant, (MATRIX, SHIFT, ELEMENTS, FIRST)))
    np.testing.assert_allclose(values, expected(rule, False)[0], rtol=1e-8, atol=1e-10)
    if rule == "unrolled-plain":
        check(loop, rule, mode)
        return
    with pytest.raises(LookupError, match=r"tf.vectorized_map.*drops.*Use tf.map_fn"):
        gradients(loop, solve, mode)


@pytest.mark.parametrize(
    "rule",
    ["implicit", *(pytest.param(r, marks=pytest.mark.slow) for r in RULES if r != "implicit")],
)
@pytest.mark.slow
def test_a_gradient_inside_of_vectorized_map(rule):
    """The same as with tf.map_fn."""
    inputs = [*map(tf.constant, (MATRIX, SHIFT, ELEMENTS, FIRST))]
    solve = with_tape(solver_of(rule))
    found, known = (loop(solve, *inputs) for loop in (vectorized_map, map_fn))
    np.testing.assert_allclose(found, known, rtol=1e-8, atol=1e-10)
    assert np.abs(found).max() > 1e-3


@pytest.mark.slow
def test_a_jacobian_by_vectorized_map():
    """tape.jacobian maps over an existing backward pass."""
    solve = solver_of("implicit")
    x = tf.constant(ELEMENTS[0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        z = solve(tf.constant(MATRIX), x)
    found = tape.jacobian(z, x)
    known = tape.jacobian(z, x, experimental_use_pfor=False)
    np.testing.assert_allclose(found, known, rtol=1e-8, atol=1e-12)
    assert np.abs(found).max() > 0.1
