"""Values that compiled functions read at each call."""

import pytest
import tensorflow as tf

from tfdeq.cell_calls.call_time import call_time_value, can_ask, current_graph, function_graph


class Dial:
    """A number that functions read."""

    def __init__(self):
        self.value, self.usual, self.asked = 1.0, tf.constant(7.0), 0

    def ask(self):
        self.asked += 1
        if can_ask(current_graph()):  # while another function is traced
            return self.tensor()
        return tf.constant(self.value)

    def tensor(self):
        return call_time_value("dial", self.ask, tf.TensorSpec([]), lambda: self.usual)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_functions_loops_and_branches_ask_once_a_call(jit_compile):
    dial, traces = Dial(), []

    @tf.function
    def inner(x):
        traces.append("inner")
        return dial.tensor() * x + dial.tensor()

    @tf.function(jit_compile=jit_compile)
    def outer(x):
        traces.append("outer")

        def body(i, y):
            step = tf.cond(i > 0, lambda: inner(x), lambda: dial.tensor())
            return i + 1, y + step

        return tf.while_loop(lambda i, y: i < 3, body, (0, 0.0))[1]

    for value in (2.0, 3.0):
        dial.value, dial.asked = value, 0
        assert float(outer(tf.constant(10.0))) == 23 * value  # 11 twice and 1
        assert float(inner(tf.constant(10.0))) == 11 * value
    assert traces == ["outer", "inner"]
    assert dial.asked == 2  # once for each of the two calls in the last iteration


def test_gradients_pass_by():
    dial = Dial()
    square = tf.function(lambda x: dial.tensor() * x * x)
    x = tf.constant(3.0)
    for value in (1.0, 2.0):
        dial.value = value
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = square(x)
        assert float(tape.gradient(y, x)) == 6 * value


def test_a_saved_function_has_the_default(tmp_path):
    dial, module = Dial(), tf.Module()
    module.call = tf.function(lambda x: dial.tensor() * x, input_signature=[tf.TensorSpec([])])
    assert float(module.call(2.0)) == 2.0
    tf.saved_model.save(module, str(tmp_path), signatures=module.call)
    loaded = tf.saved_model.load(str(tmp_path))
    assert float(loaded.call(2.0)) == 14.0
    assert list(loaded.signatures["serving_default"].structured_input_signature[1]) == ["x"]
    assert float(module.call(2.0)) == 2.0


def test_graphs():
    assert current_graph() is None
    assert not can_ask(None)
    with tf.Graph().as_default() as graph:
        assert not can_ask(graph)  # it is not called

    @tf.function
    def function(x):
        graph, seen = current_graph(), []

        def body(y):
            seen.append(current_graph())
            return y + 1.0

        tf.while_loop(lambda y: y < x, body, (0.0,))
        assert seen[0] is not graph
        assert function_graph(seen[0]) is graph
        assert can_ask(graph)
        assert can_ask(seen[0])
        return x

    function(tf.constant(2.0))
