"""Tests of tfdeq.numerics.fixed_shapes."""

import pytest
import tensorflow as tf

from tests.support.cases import EVERY_MODE, in_mode
from tfdeq.numerics.fixed_shapes import (
    fixed_spec,
    for_litert,
    is_for_litert,
    shapes_are_fixed,
    unaliased,
)


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_it_knows_who_compiles(mode):
    def both():
        inner = tf.while_loop(lambda k: k < 1, lambda k: [k + int(shapes_are_fixed()) + 1], [0])
        return tf.constant(shapes_are_fixed()), tf.convert_to_tensor(inner[0] - 1)

    outside, inside = in_mode(both, mode)()
    assert bool(outside) == bool(int(inside)) == (mode == "xla")


def test_a_trace_for_litert_has_fixed_shapes():
    found = {}

    @tf.function
    def traced(name):
        found[name] = (shapes_are_fixed(), is_for_litert())
        return tf.zeros([])

    traced("graph")
    with for_litert():
        assert not shapes_are_fixed(), "eager mode knows every shape"
        traced("litert")
    assert found == {"graph": (False, False), "litert": (True, True)}


def test_sizes_of_inputs():
    spec = tf.TensorSpec([None, None, 3], tf.float32, "x")
    assert fixed_spec("x", spec) is spec
    with for_litert(rows=2, inputs={"x": [5, 3]}):
        assert fixed_spec("x", spec).shape == [2, 5, 3]
        assert fixed_spec("y", tf.TensorSpec([None], tf.int32)).shape == [2]
    with for_litert(), pytest.raises(ValueError, match=r"LiteRT needs the shape.*'x'.*\(16, 3\)"):
        fixed_spec("x", spec)
    with for_litert(inputs={"x": [5, 4]}), pytest.raises(ValueError, match=r"received.*\(5, 4\)"):
        fixed_spec("x", spec)


def test_results_that_are_another_variable_are_copied():
    def shifted(step, one, other, flag):
        results = [step + 1, other, tf.identity(one), flag]
        kept = unaliased(results, [step, one, other, flag], step)
        return kept, [result is not given for result, given in zip(kept, results, strict=True)]

    @tf.function
    def traced():
        inputs = [tf.constant(0), tf.constant([1.0]), tf.constant([2.0]), tf.constant([True])]
        _, plain = shifted(*inputs)
        with for_litert():
            kept, copied = shifted(*inputs)
        assert (plain, copied) == ([False] * 4, [False, True, True, False])
        return kept

    step, one, other, flag = traced()
    assert (step, one[0], other[0], flag[0]) == (1, 2.0, 1.0, True)
