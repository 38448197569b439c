"""Tests of tfdeq.baselines.recurrent."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeq.baselines import Recurrent, recurrent

FEATURES, WIDTH = 5, 7


def _inputs():
    return np.random.default_rng(0).normal(size=(3, 6, FEATURES)).astype("float32")


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_layers_are_those_of_keras(kind):
    kinds = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
    expected = keras.Sequential(
        [keras.Input((None, FEATURES))]
        + [kinds[kind](WIDTH, return_sequences=True) for _ in range(2)]
    )
    layer = Recurrent(WIDTH, 2, kind)
    layer.build((None, None, FEATURES))
    layer.set_weights(expected.get_weights())
    np.testing.assert_allclose(layer(_inputs()), expected(_inputs()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "gates", "biases"), [("lstm", 4, 1), ("gru", 3, 2)])
def test_parameters(kind, gates, biases):
    layer = Recurrent(WIDTH, 3, kind)
    layer(_inputs())
    first = gates * WIDTH * (FEATURES + WIDTH + biases)
    later = gates * WIDTH * (WIDTH + WIDTH + biases)
    assert layer.count_params() == first + 2 * later


def test_memory_is_the_states_of_each_layer():
    layer = Recurrent(WIDTH, 2)
    x = _inputs()
    output, memory = layer(x, layer.initial_memory(3))
    assert [len(states) for states in memory] == [2, 2]
    np.testing.assert_array_equal(memory[1][0], output[:, -1])
    assert len(Recurrent(WIDTH, 3, "gru").initial_memory(2)[2]) == 1


def test_dropout_is_locked_at_the_input_of_each_layer_and_the_output():
    layer = Recurrent(WIDTH, 2, dropout=0.5)
    output = layer(_inputs(), training=True).numpy()
    dropped = output == 0
    assert (dropped.all(axis=1) | ~dropped.any(axis=1)).all()
    assert 0.2 < dropped.mean() < 0.8
    for place in layer.input_dropouts:
        ones = place(tf.ones([3, 6, 20]), training=True).numpy()
        assert (ones == ones[:, :1]).all()
        assert (ones[0] != ones[1]).any()
    assert len(layer.input_dropouts) == 2


def test_cudnn_is_left_alone_under_xla(monkeypatch):
    layer = Recurrent(WIDTH)
    layer(_inputs())
    assert layer.stack[0].use_cudnn == "auto"
    monkeypatch.setattr(recurrent, "shapes_are_fixed", lambda: True)
    layer(_inputs())
    assert layer.stack[0].use_cudnn is False


def test_another_kind():
    with pytest.raises(ValueError, match="kind must be one of lstm, gru; received 'rnn'"):
        Recurrent(WIDTH, kind="rnn")
