"""Solves by blocks: the equilibrium of plain iteration, at the cost of the blocks that change."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import fast, in_mode
from tfdeq.block_solve import solve_by_blocks
from tfdeq.cells import ComposedCell, RecallConvolution, TokenMixing
from tfdeq.solvers import FixedPointIteration

EXACT = FixedPointIteration(max_steps=400, tolerance=1e-8)


def _floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def _contraction(z, x, mask):
    """A third of the mean of a place and its neighbours, plus x, in one or two dimensions."""
    found = z
    for axis in range(1, z.shape.rank - 1):
        pads = [[0, 0] for _ in z.shape]
        pads[axis] = [1, 1]
        wide, size = tf.pad(z, pads), tf.shape(z)[axis]
        found += tf.gather(wide, tf.range(size), axis=axis)
        found += tf.gather(wide, tf.range(2, size + 2), axis=axis)
    found = found / (2.0 * z.shape.rank - 3.0) * 0.9
    return tf.where(mask[..., None], found + x, 0.0)


def _solved(x, block, tolerance=1e-10, mask=None, max_steps=5000, applications=8, f=_contraction):
    x = tf.constant(x)
    mask = tf.ones(x.shape[:-1], tf.bool) if mask is None else tf.constant(mask)
    rows = x.shape[0]

    def solve():
        return solve_by_blocks(
            f,
            tf.zeros_like(x),
            tf.where(mask[..., None], x, 0.0),
            mask,
            reach=1,
            block=block,
            tolerance=tf.fill([rows], tf.constant(tolerance, x.dtype)),
            max_steps=tf.broadcast_to(max_steps, [rows]),
            applications=applications,
        )

    # In a graph, because the many small operations are slow in eager mode.
    return tf.function(solve, autograph=False)()


def _cell(rank):
    return RecallConvolution(4, rank, recurrent_scale=0.2, dtype="float64")


def _dense(x, mask):
    """(I − A)⁻¹ x, by the matrix of the contraction."""
    places, count = x.shape[1:-1], int(np.prod(x.shape[1:-1]))
    unit = np.eye(count).reshape(count, *places, 1)
    columns = _contraction(
        tf.constant(unit), tf.zeros_like(unit), tf.ones(unit.shape[:-1], tf.bool)
    )
    matrix = columns.numpy().reshape(count, count).T
    solved = np.zeros_like(x)
    for row in range(len(x)):
        inside = mask[row].reshape(-1)
        own = np.eye(inside.sum()) - matrix[np.ix_(inside, inside)]
        flat = np.zeros((count, x.shape[-1]))
        flat[inside] = np.linalg.solve(own, x[row].reshape(count, -1)[inside])
        solved[row] = flat.reshape(x.shape[1:])
    return solved


@pytest.mark.parametrize(
    ("shape", "block", "applications"),
    [
        ((3, 50, 2), 8, 8),
        pytest.param((3, 50, 2), 7, 3, marks=pytest.mark.slow),
        pytest.param((2, 5, 1), 8, 2, marks=pytest.mark.slow),
        ((2, 13, 10, 2), 4, 8),
        pytest.param((2, 9, 9, 1), 3, 2, marks=pytest.mark.slow),
    ],
)
def test_the_equilibrium(shape, block, applications):
    """Compared with the solution of the linear system, with some places outside."""
    x, mask = _floats(*shape), np.random.default_rng(1).random(shape[:-1]) > 0.2
    solution = _solved(x, block, mask=mask, applications=applications)
    np.testing.assert_allclose(solution.z, _dense(x, mask), atol=1e-8)
    assert solution.converged.numpy().all()
    image = _contraction(solution.z, tf.where(mask[..., None], x, 0.0), tf.constant(mask))
    own = np.linalg.norm((image - solution.z).numpy().reshape(len(x), -1), axis=1)
    own /= np.linalg.norm(image.numpy().reshape(len(x), -1), axis=1)
    np.testing.assert_allclose(solution.residual, own, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 40, 2), pytest.param((3, 9, 7, 2), marks=pytest.mark.slow)])
def test_samples_do_not_depend_on_their_batch(shape):
    x = _floats(*shape)
    x[1] = 0.0  # settles at once
    together = _solved(x, 4, tolerance=1e-6)
    for row in range(3):
        alone = _solved(x[row : row + 1], 4, tolerance=1e-6)
        np.testing.assert_allclose(together.z[row], alone.z[0], atol=1e-12)
        for name in ("residual", "steps", "status"):
            np.testing.assert_allclose(
                getattr(together, name)[row], getattr(alone, name)[0], atol=1e-9
            )


def test_only_what_changes_is_computed():
    """A carry through a chain: one block at a time, not all of them at every step."""
    computed = []

    def carry(z, x, mask):
        """A place adds its own value to that of the previous place; exact after one pass."""
        tf.py_function(
            lambda rows, size: computed.append(int(rows * size)), [*tf.unstack(tf.shape(z)[:2])], []
        )
        moved = tf.pad(z, [[0, 0], [1, 0], [0, 0]])[:, :-1]
        return tf.where(mask[..., None], tf.math.floormod(moved + x, 2.0), 0.0)

    bits = np.random.default_rng(0).integers(0, 2, (1, 512, 1)).astype(float)
    solution = _solved(bits, 32, tolerance=1e-12, f=carry)
    np.testing.assert_array_equal(solution.z, np.cumsum(bits, axis=1) % 2)
    # Plain iteration computes 512 places 512 times. Here a block has up to three turns, for itself
    # and its neighbours, each of 5 sweeps of 8 applications to at most 48 places.
    assert sum(computed) < 0.2 * 512 * 512


def test_budgets_end_a_solve():
    x = _floats(3, 40, 1)
    budgets = tf.constant([1, 30, 5000])
    solution = _solved(x, 8, tolerance=1e-10, max_steps=budgets)
    assert (solution.steps <= budgets).numpy().all()
    assert solution.converged.numpy().tolist() == [False, False, True]
    np.testing.assert_array_equal(solution.z[0], np.zeros((40, 1)))
    assert 0 < float(solution.residual[1]) < 1


def test_what_is_not_finite_ends_its_sample_alone():
    x = _floats(2, 20, 1)
    x[0, 3] = np.inf
    solution = _solved(x, 4)
    assert solution.status.numpy().tolist() == [
        int(tfdeq.Status.NON_FINITE),
        int(tfdeq.Status.CONVERGED),
    ]
    assert np.isfinite(solution.z[0]).all()
    np.testing.assert_allclose(solution.z[1], _solved(x[1:], 4).z[0], atol=1e-12)


@pytest.mark.parametrize("mode", fast(["graph"], ["eager", "graph"]))
@pytest.mark.parametrize(
    ("cell", "shape"),
    [
        pytest.param(lambda: _cell(1), (3, 30, 4), marks=pytest.mark.slow),
        (lambda: _cell(2), (2, 9, 7, 4)),
        pytest.param(
            lambda: ComposedCell([_cell(1), _cell(1)], dtype="float64"),
            (3, 30, 4),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_layer(cell, shape, mode, tmp_path):
    """The answer of a layer without blocks; saved and loaded, and in training as without them."""
    keras.utils.set_random_seed(0)
    whole = tfdeq.DEQLayer(cell(), EXACT, dtype="float64")
    apart = tfdeq.DEQLayer(cell(), EXACT, block=5, dtype="float64")
    x = tf.constant(_floats(*shape))
    whole(x, max_steps=1), apart(x, max_steps=1)  # builds them
    apart.set_weights(whole.get_weights())
    solve = in_mode(lambda x: tuple(apart(x, return_solution=True))[:4], mode)
    solution = tfdeq.Solution(*solve(x))
    np.testing.assert_allclose(solution.z, whole(x), atol=1e-6)  # the tolerance, amplified
    assert solution.converged.numpy().all()
    expected = whole(x, training=True, return_solution=True)
    np.testing.assert_array_equal(
        apart(x, training=True, return_solution=True).steps, expected.steps
    )
    inputs = keras.Input(shape[1:], dtype="float64")
    keras.Model(inputs, apart(inputs)).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].block == 5


@pytest.mark.slow
def test_xla_and_traces_solve_as_usual():
    layer = tfdeq.DEQLayer(RecallConvolution(4, 1, recurrent_scale=0.2), EXACT, block=5)
    x = tf.constant(_floats(2, 30, 4).astype("float32"))
    compiled = tf.function(lambda x: layer(x, tolerance=1e-4), jit_compile=True)(x)
    np.testing.assert_allclose(compiled, layer(x, tolerance=1e-4), atol=1e-2)
    traced = layer(x, tolerance=1e-4, return_solution=True, trace=True)
    assert traced.trace.shape[0] == 2


def test_without_compaction_the_whole_is_solved_and_carries_a_gradient():
    layer = tfdeq.DEQLayer(RecallConvolution(4, 1, recurrent_scale=0.2), EXACT, block=5)
    x = tf.constant(_floats(1, 8, 4).astype("float32"))
    for compaction in (True, False):
        with tfdeq.SolveScope(compaction=compaction), tf.GradientTape() as tape:
            tape.watch(x)
            z = layer(x, max_steps=3)
        assert (tape.gradient(z, x) is not None) is not compaction


@pytest.mark.parametrize(
    ("cell", "settings", "message"),
    [
        (
            TokenMixing(4, 5),
            {"block": 4},
            "a cell with the attribute `reach`.*received a TokenMixing",
        ),
        (RecallConvolution(4), {"block": 0}, "block must be"),
        (RecallConvolution(4), {"block": 4, "solver": "anderson"}, "without damping; received"),
        (
            ComposedCell([RecallConvolution(4), RecallConvolution(4)]),
            {"block": 1},
            "at least the cell's reach of 2; received 1",
        ),
    ],
)
def test_bad_settings(cell, settings, message):
    with pytest.raises(ValueError, match=message):
        tfdeq.DEQLayer(cell, **{"solver": "fixed_point_iteration", **settings})
