"""Tests of tfdeq.steadiness.live_number."""

import tensorflow as tf

from tests.support.cases import EVERY_MODE, in_mode
from tfdeq.steadiness.live_number import LiveNumber


def test_functions_read_the_number_when_they_are_called():
    for mode in EVERY_MODE:
        number = LiveNumber(1.0)
        function = in_mode(lambda number=number: 2.0 * number.read(), mode)
        assert float(function()) == 2.0
        number.value = 3.0
        assert float(function()) == 6.0


def test_a_function_inside_another_and_a_loop_read_it_too():
    number = LiveNumber(1.0)
    inner = tf.function(lambda: number.read(), autograph=False)

    @tf.function(autograph=False)
    def outer():
        return tf.while_loop(lambda k, _: k < 2, lambda k, y: (k + 1, y + inner()), (0, 0.0))[1]

    assert float(outer()) == 2.0
    number.value = 5.0
    assert float(outer()) == 10.0


def test_a_saved_function_keeps_the_value(tmp_path):
    number = LiveNumber(2.0)
    module = tf.Module()
    module.f = tf.function(lambda: number.read(), autograph=False, input_signature=[])
    module.f()
    tf.saved_model.save(module, str(tmp_path))
    assert float(tf.saved_model.load(str(tmp_path)).f()) == 2.0
