"""Tests of tfdeq.compaction: fewer rows, same answers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import GENERAL, MODES, DenseCell, fast, in_mode
from tfdeq import solvers
from tfdeq.compaction import BoundFunction, RowwiseFunction

SIZE = 6
GROWING = ("broyden",)


def _case(batch=9, seed=0):
    """tanh(zA) s + x with a slope s for each sample; one of nine samples needs many more steps."""
    random = np.random.default_rng(seed)
    a = random.normal(size=(SIZE, SIZE)).astype("float32")
    x = random.normal(size=(batch, SIZE)).astype("float32")
    slope = np.full((batch, 1), 0.1, "float32")
    slope[batch // 2] = 0.9
    slope[:2] = 0.4
    return a / np.linalg.norm(a, 2), x, slope


def _f(z, sample, a):
    return sample["slope"] * tf.tanh(tf.matmul(z, a)) + sample["x"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", fast(["anderson"], GENERAL))
def test_answers_are_those_of_the_whole_batch(name, mode):
    a, x, slope = _case()
    tolerance = np.full(9, 1e-5, "float32")
    tolerance[3] = 1e-2

    def solve(batched_args):
        def run(a, x, slope, tolerance):
            args = ({"x": x, "slope": slope}, a)
            solution = tfdeq.fixed_point(
                _f, tf.zeros_like(x), args, solvers.get(name, max_steps=60), "jacobian_free",
                tolerance, batched_args=batched_args,
            )  # fmt: skip
            return solution

        return in_mode(run, mode)(*map(tf.constant, (a, x, slope, tolerance)))

    whole, shrinking = solve(None), solve((0,))
    assert len(set(whole.steps.numpy())) > 2
    np.testing.assert_array_equal(shrinking.steps, whole.steps)
    np.testing.assert_array_equal(shrinking.status, whole.status)
    # Another batch size may sum in another order.
    np.testing.assert_allclose(shrinking.z, whole.z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shrinking.residual, whole.residual, rtol=1e-3, atol=1e-6)


def test_rows_fall_by_half_at_least():
    """f receives the whole batch, and then only the running samples, whenever half are done."""
    a, x, slope = _case(batch=8)
    slope[:] = 0.1
    slope[0], slope[1:3] = 0.9, 0.5
    seen = []

    def f(z, sample, a):
        seen.append(int(z.shape[0]))
        return _f(z, sample, a)

    args = ({"x": tf.constant(x), "slope": tf.constant(slope)}, tf.constant(a))
    solver = tfdeq.FixedPointIteration(max_steps=100, tolerance=1e-5)
    solution = tfdeq.fixed_point(f, tf.zeros_like(x), args, solver, batched_args=(0,))
    steps = np.sort(solution.steps.numpy())[::-1]
    assert len(seen) == steps[0]
    assert seen[: steps[4]] == [8] * steps[4]
    for evaluation, rows in enumerate(seen):
        running = (steps > evaluation).sum()
        assert running <= rows < 2 * running or rows == running == 1


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_an_empty_batch(mode):
    x = tf.zeros([0, SIZE])
    run = in_mode(
        lambda x: tfdeq.fixed_point(lambda z, x: 0.5 * z + x, x, (x,), batched_args=(0,)), mode
    )
    assert run(x).z.shape == [0, SIZE]


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_states_without_entries(mode):
    x = tf.zeros([3, 0, 2])
    run = in_mode(
        lambda x: tfdeq.fixed_point(lambda z, x: 0.5 * z + x, x, (x,), batched_args=(0,)), mode
    )
    solution = run(x)
    assert solution.z.shape == [3, 0, 2]
    assert solution.steps.numpy().tolist() == [1, 1, 1]


def test_rows_of_what_all_samples_share():
    f = RowwiseFunction(lambda z, x, w: z * x["own"] + x["shared"] * w, batched_args=(0,))
    x = {"own": tf.constant([[1.0], [2.0], [3.0]]), "shared": tf.constant([[10.0]])}
    bound = BoundFunction(f, (x, tf.constant(2.0)))
    assert bound.compacts
    z = tf.ones([2, 1])
    np.testing.assert_array_equal(bound.rows(tf.constant([2, 0]))(z), [[23.0], [21.0]])
    assert not BoundFunction(lambda z: z, ()).compacts


def test_gradient_is_that_of_the_whole_batch():
    a, x, slope = _case()
    gradients = []
    for batched_args in (None, (0,)):
        args = ({"x": tf.constant(x), "slope": tf.constant(slope)}, tf.constant(a))
        with tf.GradientTape() as tape:
            tape.watch(args)
            z = tfdeq.fixed_point(
                _f, tf.zeros_like(x), args, tfdeq.Broyden(60, 1e-6), batched_args=batched_args
            ).z
            loss = tf.reduce_sum(z**2)
        gradients.append(tf.nest.flatten(tape.gradient(loss, args)))
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


class MaskedCell(DenseCell):
    """Zero outside the mask."""

    supports_masking = True

    def call(self, z, x, mask=None):
        y = super().call(z, x)
        return y if mask is None else y * keras.ops.cast(mask, y.dtype)[..., None]


@pytest.mark.slow
def test_a_layers_mask_follows_its_samples():
    """Each sample has its own mask, and samples leave the batch at different times."""
    random = np.random.default_rng(0)
    x = random.normal(size=(6, 3, SIZE)).astype("float32") * 10.0 ** -np.arange(6)[:, None, None]
    mask = np.tri(6, 3, dtype=bool)
    mask[0] = [True, False, True]
    layer = tfdeq.DEQLayer(MaskedCell(SIZE, gain=0.7), tfdeq.FixedPointIteration(60, 1e-4))
    together = layer(x, mask=tf.constant(mask), return_solution=True)
    assert len(set(together.steps.numpy())) > 2
    for sample in range(6):
        row = slice(sample, sample + 1)
        alone = layer(x[row], mask=tf.constant(mask[row]), return_solution=True)
        assert alone.steps[0] == together.steps[sample]
        np.testing.assert_allclose(alone.z[0], together.z[sample], rtol=1e-5, atol=1e-6)


def test_positions_out_of_range():
    with pytest.raises(ValueError, match=r"positions in args, 0 to 0; received \[1\]"):
        tfdeq.fixed_point(lambda z, x: x, tf.ones([2, 3]), (tf.ones([2, 3]),), batched_args=(1,))


@pytest.mark.slow
@pytest.mark.parametrize("name", fast(["anderson"], GENERAL))
def test_a_traced_function_inside_a_compiled_one(name):
    """It keeps what was traced: the loop over a batch that shrinks, which XLA pads to its first size."""
    a, x, slope = _case()
    traced = tf.function(
        lambda *args: tfdeq.fixed_point(
            lambda z, x, slope: _f(z, {"x": x, "slope": slope}, a),
            tf.zeros_like(args[0]),
            args,
            solvers.get(name, max_steps=80),
            tolerance=1e-5,
            batched_args=(0, 1),
        )[:4],
        autograph=False,
    )
    expected = traced(x, slope)
    compiled = tf.function(lambda *args: traced(*args), jit_compile=True, autograph=False)
    if name in GROWING:  # histories that change their shape: an error, but no wrong answer
        with pytest.raises(tf.errors.InvalidArgumentError):
            compiled(x, slope)
        return
    z, residual, *others = compiled(x, slope)
    np.testing.assert_allclose(z, expected[0], atol=1e-6)
    np.testing.assert_allclose(residual, expected[1], atol=1e-6)
    for found, value in zip(others, expected[2:], strict=True):
        np.testing.assert_array_equal(found, value)
