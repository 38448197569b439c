"""Tests of tfdeq.warm_starts."""

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import DenseCell, PairCell, fast, in_mode


def _frames(number=6, batch=3, size=4):
    """A slowly changing stream of frames."""
    random = np.random.default_rng(0)
    first, drift = (random.normal(size=(batch, size)).astype("float32") for _ in range(2))
    return [first + 1e-3 * index * drift for index in range(number)]


@pytest.mark.slow
@pytest.mark.parametrize("graph", fast([False], [False, True]))
def test_streams_need_fewer_steps_and_end_at_the_same_states(graph):
    layer = tfdeq.DEQLayer(DenseCell(4, gain=0.9), tfdeq.Anderson(tolerance=1e-5, max_steps=50))
    frames = _frames()
    warm_starts = tfdeq.WarmStarts(layer.initial_state(frames[0]))

    def advance(keys, frame):
        z0 = warm_starts.get(keys, layer.initial_state(frame))
        solution = layer(frame, z0=z0, return_solution=True)
        warm_starts.put(keys, solution)
        return solution

    if graph:
        advance = tf.function(advance)
    keys = tf.constant([11, 5, 8], tf.int64)
    for index, frame in enumerate(frames):
        cold = layer(frame, return_solution=True)
        # The position in the batch does not matter, only the key.
        order = np.roll([0, 1, 2], index)
        warm = advance(tf.gather(keys, order), tf.constant(frame[order]))
        np.testing.assert_allclose(warm.z, cold.z.numpy()[order], rtol=1e-3, atol=1e-4)
        if index:
            assert (warm.steps.numpy() <= 0.75 * cold.steps.numpy()[order]).all()
        else:
            np.testing.assert_array_equal(warm.steps, cold.steps.numpy()[order])
    assert int(warm_starts.size()) == 3


def test_unknown_and_forgotten_keys_get_the_default():
    warm_starts = tfdeq.WarmStarts(tf.zeros([1, 2]), key_dtype=tf.string)
    solution = tfdeq.fixed_point(lambda z: 0.5 * z + 1.0, tf.zeros([2, 2]))
    warm_starts.put(["a", "b"], solution)
    default = tf.fill([3, 2], 9.0)
    found = warm_starts.get(["b", "new", "a"], default)
    np.testing.assert_allclose(found, [[2, 2], [9, 9], [2, 2]], rtol=1e-2)
    warm_starts.forget(["a", "never there"])
    np.testing.assert_array_equal(warm_starts.get(["a"], default[:1]), [[9, 9]])
    assert int(warm_starts.size()) == 1


def test_states_that_are_not_finite_are_left_out():
    warm_starts = tfdeq.WarmStarts(tf.zeros([1, 1]))
    slope = tf.constant([[0.5], [1e30]])
    solution = tfdeq.fixed_point(lambda z: slope * (z + 1.0) ** 2, tf.zeros([2, 1]) + 0.1)
    assert int(solution.status[1]) == tfdeq.Status.NON_FINITE
    warm_starts.put([1, 2], solution)
    assert int(warm_starts.size()) == 1
    nothing = solution._replace(z=solution.z[1:], status=solution.status[1:])
    warm_starts.put([3], nothing)
    assert int(warm_starts.size()) == 1


def test_nests_half_precision_and_checkpoints(tmp_path):
    layer = tfdeq.DEQLayer(PairCell(3), dtype="mixed_bfloat16")
    x = {"value": tf.ones([2, 3]), "token": tf.constant([0, 4])}
    warm_starts = tfdeq.WarmStarts(layer.initial_state(x))
    solution = layer(x, return_solution=True)
    assert solution.z["first"].dtype == tf.float32
    warm_starts.put([1, 2], solution)
    path = tf.train.Checkpoint(warm_starts=warm_starts).write(str(tmp_path / "state"))
    again = tfdeq.WarmStarts(layer.initial_state(x))
    tf.train.Checkpoint(warm_starts=again).read(path).assert_consumed()
    found = again.get([2, 1], layer.initial_state(x))
    assert found["first"].dtype == tf.float32
    for name in ("first", "second"):
        expected = tf.cast(solution.z[name], tf.float32)[::-1]
        np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_as_many_keys_as_rows(mode):
    warm_starts = tfdeq.WarmStarts(tf.zeros([1, 2]))
    solution = tfdeq.fixed_point(lambda z: 0.5 * z + 1.0, tf.zeros([3, 2]))
    warm_starts.put([1, 2, 3], solution)

    def put(keys):
        warm_starts.put(keys, solution)

    for call in (lambda keys: warm_starts.get(keys, tf.zeros([3, 2])), put):
        for keys in ([1], [1, 2]):
            with pytest.raises(tf.errors.InvalidArgumentError, match="a row for each sample"):
                in_mode(lambda call=call, keys=keys: call(tf.constant(keys, tf.int64)), mode)()


def test_wrong_keys_and_states():
    warm_starts = tfdeq.WarmStarts(tf.zeros([1, 2]))
    with pytest.raises(ValueError, match=r"keys must be of shape \[B\] and int64.*shape \(\)"):
        warm_starts.get(tf.constant(3), tf.zeros([1, 2]))
    with pytest.raises(ValueError, match=r"The state must be of shapes \['B', 2\]"):
        warm_starts.get([3], tf.zeros([1, 3]))
    with pytest.raises(ValueError, match=r"dimensions after the first are known"):
        tfdeq.WarmStarts(tf.TensorSpec([None, None], tf.float32))
    with pytest.raises(TypeError, match=r"tf\.int64 or tf\.string"):
        tfdeq.WarmStarts(tf.zeros([1, 2]), key_dtype=tf.float32)
