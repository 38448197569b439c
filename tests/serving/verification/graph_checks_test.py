"""Findings of graph_checks in a function, and in the functions that it calls."""

import tensorflow as tf

from tfdeq.serving.verification.graph_checks import problems

SPEC = tf.TensorSpec([None], tf.float32)


def traced(function):
    return tf.function(function, input_signature=[SPEC], autograph=False).get_concrete_function()


def in_a_loop(function):
    return lambda x: tf.while_loop(lambda x: tf.reduce_sum(x) < 1.0, lambda x: function(x), [x])[0]


def test_pure_function_has_no_problems():
    variable = tf.Variable(2.0)
    inner = tf.function(lambda x: x * variable)
    assert problems(traced(in_a_loop(inner))) == []


def test_finds_a_write_inside_a_loop():
    variable = tf.Variable(0.0)
    function = traced(in_a_loop(lambda x: x + variable.assign_add(1.0)))
    assert any("AssignAddVariableOp" in line for line in problems(function))


def test_finds_a_jit_compiled_function_inside_a_loop():
    compiled = tf.function(lambda x: x + 1.0, jit_compile=True)
    assert any("jit-compiled" in line for line in problems(traced(in_a_loop(compiled))))


def test_finds_a_call_of_python():
    function = traced(lambda x: tf.ensure_shape(tf.py_function(abs, [x], tf.float32), [None]))
    assert any("calls Python" in line for line in problems(function))
