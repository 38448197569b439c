"""Tests of tfdeq.numerics.state_layout: nests of any dtypes in one matrix."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import GENERAL, fast_pairs, in_mode, linear_case, tanh_cell
from tfdeq import solvers
from tfdeq.iteration import iterate
from tfdeq.numerics.state_layout import StateLayout


def test_there_and_back():
    z = {
        "p": tf.reshape(tf.range(12.0), [2, 3, 2]),
        "q": (tf.constant([[1.0], [2.0]], tf.float16),),
    }
    layout = StateLayout(z)
    matrix = layout.flatten(z)
    assert matrix.dtype == tf.float32
    np.testing.assert_array_equal(matrix[1], [6, 7, 8, 9, 10, 11, 2])
    back = layout.unflatten(matrix)
    tf.nest.map_structure(np.testing.assert_array_equal, back, z)
    assert back["q"][0].dtype == tf.float16


@pytest.mark.parametrize(
    ("name", "dtype"),
    fast_pairs(GENERAL, ["float16", "bfloat16"], ["anderson"]),
)
def test_half_precision_states_are_solved_in_float32(name, dtype):
    """The cell computes in float32 behind its half-precision interface; z keeps its dtype."""
    a, x = [array.astype("float32") for array in linear_case(4, 5, 0.8)]
    seen = []

    class Spy(solvers.REGISTRY[name]):
        def step(self, state, k, z, f_z):
            seen.append((z.dtype, f_z.dtype))
            return super().step(state, k, z, f_z)

        def step_with_products(self, state, k, z, f_z, *others):
            seen.append((z.dtype, f_z.dtype))
            return super().step_with_products(state, k, z, f_z, *others)

    def f(z):
        assert z.dtype == dtype
        return tf.cast(tanh_cell(tf.cast(z, tf.float32), a, x), dtype)

    solution = iterate(f, tf.zeros([4, 5], dtype), Spy(tolerance=2e-2))
    assert set(seen) == {(tf.float32, tf.float32)}
    assert solution.z.dtype == dtype
    assert solution.residual.dtype == tf.float32
    assert solution.converged.numpy().all()


def test_mixed_leaves_keep_their_dtypes():
    z0 = {"half": tf.zeros([2, 3], tf.float16), "double": tf.zeros([2, 1], tf.float64)}
    f = lambda z: tf.nest.map_structure(lambda leaf: 0.5 * leaf + 1, z)  # noqa: E731
    solution = iterate(f, z0, solvers.get("anderson"))
    assert solution.z["half"].dtype == tf.float16
    assert solution.z["double"].dtype == tf.float64
    np.testing.assert_allclose(solution.z["double"], np.full([2, 1], 2.0), rtol=1e-2)


@pytest.mark.parametrize(
    ("output", "received"),
    [
        (lambda z: z[:, :2], r"f returned: \(2, 2\) float32"),
        (lambda z: tf.cast(z, tf.float64), r"f returned: \(2, 3\) float64"),
        (lambda z: (z, z), "f returned: "),
        (lambda z: {"z": z}, "f returned: "),
        (lambda z: z[:, None], r"f returned: \(2, 1, 3\) float32"),
    ],
    ids=["shape", "dtype", "tuple", "dict", "rank"],
)
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_output_unlike_the_state(mode, output, received):
    solve = in_mode(lambda: iterate(output, tf.zeros([2, 3]), solvers.get("broyden")), mode)
    with pytest.raises(ValueError, match=r"z: \(2, 3\) float32; " + received) as info:
        solve()
    assert "Change f's last operation, or start from a z0 like f's output." in str(info.value)


def test_integer_state():
    with pytest.raises(TypeError, match="z0 must be of a floating dtype; received int32"):
        iterate(lambda z: z, tf.zeros([2, 3], tf.int32), solvers.get("broyden"))


def test_scalar_state():
    with pytest.raises(ValueError, match=r"\[B, \.\.\.\]; received a scalar.*single sample"):
        iterate(lambda z: z, tf.constant(1.0), solvers.get("broyden"))


def test_empty_state():
    with pytest.raises(ValueError, match=r"at least one tensor; received \{\}"):
        iterate(lambda z: z, {}, solvers.get("broyden"))
