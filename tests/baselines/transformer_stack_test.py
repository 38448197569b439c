"""Tests of tfdeq.baselines.transformer_stack."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import fast, in_mode
from tfdeq.baselines import TransformerStack

WIDTH, HEADS, LENGTH = 8, 2, 9


def _inputs(length=LENGTH, dtype="float64"):
    return np.random.default_rng(0).normal(size=(2, length, WIDTH)).astype(dtype)


def _stack(layers=3, sequence_length=LENGTH, dtype="float64", **settings):
    stack = TransformerStack(WIDTH, HEADS, sequence_length, layers, dtype=dtype, **settings)
    stack.build((None, None, WIDTH))
    for block in stack.blocks:  # biases that are not multiples of each other
        table = block.distance_bias.trainable_variables[0]
        table.assign(table + keras.random.normal(table.shape, dtype=table.dtype))
    return stack


def _norm(y):
    return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)


def _reference(stack, x):
    """The documented equation in numpy, over the whole text at once."""
    for block in stack.blocks:
        qkv = _norm(x) @ block.query_key_value.kernel.numpy()
        qkv = qkv.reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        query, key, value = (qkv[:, :, part].transpose(0, 2, 1, 3) for part in range(3))
        scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(WIDTH // HEADS)
        distance = np.subtract.outer(np.arange(x.shape[1]), np.arange(x.shape[1]))
        table = block.distance_bias.trainable_variables[0].numpy()
        bias = table[np.clip(distance, 0, len(table) - 1)].transpose(2, 0, 1)
        seen = (distance >= 0) & (distance < (stack.span or x.shape[1]))
        scores = np.where(seen, scores + bias, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (shares / shares.sum(-1, keepdims=True)) @ value
        attended = attended.transpose(0, 2, 1, 3).reshape(x.shape)
        x = x + attended @ block.attention_output.kernel.numpy()
        hidden = keras.ops.gelu(_norm(x) @ block.expand.kernel.numpy(), approximate=True).numpy()
        x = x + hidden @ block.contract.kernel.numpy()
    return x


@pytest.mark.parametrize("span", fast([None, 2], [None, 1, 2, 4, LENGTH, LENGTH + 3]))
def test_is_the_documented_equation(span):
    stack = _stack(span=span)
    expected = _reference(stack, _inputs())
    np.testing.assert_allclose(stack(_inputs()), expected, rtol=1e-10, atol=1e-11)
    if span is None:
        return
    for length in (1, 2, 5):  # of 9 positions: the last segment is shorter
        memory, outputs = stack.initial_memory(2), []
        for start in range(0, LENGTH, length):
            output, memory = stack(_inputs()[:, start : start + length], memory)
            outputs.append(output)
        actual = tf.concat(outputs, axis=1)
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-11)


def test_empty_places_are_not_seen():
    """The contents of empty places do not matter, for each sample."""
    stack = _stack(span=4)
    _, memory = stack(_inputs(length=3), stack.initial_memory(2))
    np.testing.assert_array_equal(memory["length"], [3, 3])
    memory["length"] = tf.constant([2, 0])
    expected, _ = stack(_inputs(), memory)
    for name in ("key", "value"):
        other = np.reshape([100.0, 0, 0], [1, 3, 1, 1])
        memory[name] = [w + other for w in memory[name]]
    np.testing.assert_array_equal(stack(_inputs(), memory)[0][0], expected[0])
    np.testing.assert_allclose(expected[1], stack(_inputs())[1], rtol=1e-12, atol=1e-12)


def test_memory_is_filled_from_the_end():
    stack = _stack(span=4)
    memory = stack.initial_memory(2)
    assert [tuple(w.shape) for w in memory["key"]] == [(2, 3, HEADS, WIDTH // HEADS)] * 3
    for taken in (2, 3, 3):
        _, memory = stack(_inputs(length=2), memory)
        np.testing.assert_array_equal(memory["length"], [taken] * 2)
        filled = np.abs(memory["value"][0]).sum(axis=(0, 2, 3)) > 0
        np.testing.assert_array_equal(filled, np.arange(3) >= 3 - taken)


def test_the_longest_dependence_is_what_the_layers_reach_together():
    stack = _stack(layers=3, span=3)
    x = tf.constant(_inputs())
    with tf.GradientTape() as tape:
        tape.watch(x)
        last = tf.reduce_sum(stack(x)[:, -1] ** 2)
    reached = np.abs(tape.gradient(last, x)).sum(axis=(0, 2)) > 0
    np.testing.assert_array_equal(reached, np.arange(LENGTH) >= LENGTH - 1 - 3 * 2)


@pytest.mark.parametrize(("span", "entries"), [(None, LENGTH), (3, 3)])
def test_parameters(span, entries):
    stack = TransformerStack(WIDTH, HEADS, LENGTH, 2, feedforward=20, span=span)
    stack.build((None, None, WIDTH))
    assert stack.count_params() == 2 * (4 * WIDTH**2 + 2 * WIDTH * 20 + entries * HEADS)
    default = TransformerStack(WIDTH, HEADS, LENGTH, 2)
    assert default.feedforward == 4 * WIDTH


def test_segments_under_xla_with_a_full_memory_are_the_same():
    stack = _stack(span=4, dtype="float32")
    x = tf.constant(_inputs(dtype="float32"))
    _, memory = stack(x, stack.initial_memory(2))
    expected, _ = stack(x, memory)
    output, after = in_mode(stack, "xla")(x, memory)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    assert after["length"].dtype == tf.int32


def test_dropout_is_locked():
    stack = _stack(layers=1, dropout=0.5)
    x = _inputs()
    stack.blocks[0].attention_output.kernel.assign(np.zeros([WIDTH, WIDTH]))
    change = stack(x, training=True).numpy() - x  # of the MLP alone
    dropped = change == 0
    assert (dropped.all(axis=1) | ~dropped.any(axis=1)).all()
    assert dropped.any()
    assert not dropped.all()


def test_errors_say_what_was_received():
    with pytest.raises(ValueError, match="heads must divide width; received width 8, heads 3"):
        TransformerStack(WIDTH, 3, LENGTH, 1)
    for settings in ({"span": 0}, {"feedforward": 0}):
        with pytest.raises(ValueError, match="must be"):
            TransformerStack(WIDTH, HEADS, LENGTH, 1, **settings)
    with pytest.raises(ValueError, match="x must have 8 features, the width; received shape"):
        TransformerStack(WIDTH, HEADS, LENGTH, 1)(tf.zeros([2, 3, 5]))
    stack = _stack()
    with pytest.raises(ValueError, match="at most 9 long, the sequence_length; received shape"):
        stack(_inputs(length=10))
    with pytest.raises(ValueError, match="Give it a span"):
        stack.initial_memory(2)
    with pytest.raises(ValueError, match="Give it a span"):
        stack(_inputs(), {"length": tf.zeros([2], "int32")})
    assert _stack(span=3)(_inputs(length=10)).shape == (2, 10, WIDTH)
