"""Tests of tfdeq.cells.distance_bias."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import MODES, in_mode
from tfdeq.cells.distance_bias import DistanceBias, hidden_where

REACH, HEADS = 4, 2
MASKED = np.float32(-1e9)


def _learned(reach=REACH, heads=HEADS, **settings):
    """Returns a bias whose numbers all differ, and the numbers."""
    bias = DistanceBias(reach, heads, **settings)
    table = np.random.default_rng(0).normal(size=(reach, heads)).astype(bias.dtype)
    bias.table.embeddings.assign(table)
    return bias, table


def _causal(table, length, before):
    """[heads, T, P + T] by the definition, place by place."""
    reach, heads = table.shape
    expected = np.full([heads, length, before + length], MASKED)
    for to in range(length):
        for place in range(before + length):
            distance = before + to - place
            if 0 <= distance < reach:
                expected[:, to, place] = table[distance]
    return expected


@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_starts_as_slopes_of_a_geometric_sequence(slope):
    table = DistanceBias(5, 8, slope).table.embeddings.numpy()
    slopes = slope * 0.5 ** np.arange(1, 9)
    np.testing.assert_allclose(table, -np.outer(np.arange(5), slopes), rtol=1e-6)


def test_a_slope_of_zero_prefers_no_distance():
    bias = DistanceBias(REACH, HEADS, slope=0)
    np.testing.assert_array_equal(bias(np.array([0, 1, 3])), np.zeros([3, HEADS]))
    np.testing.assert_array_equal(bias(np.array([4])), [[MASKED] * HEADS])


def test_a_number_for_each_head_and_distance():
    bias, table = _learned()
    distance = np.array([[0, 3, 2], [1, 1, 0]])
    found = bias(distance)
    assert found.shape == (2, 3, HEADS)
    np.testing.assert_array_equal(found, table[distance])


@pytest.mark.parametrize("lowest", [0, 1, 3])
def test_what_is_out_of_reach_is_masked(lowest):
    bias, table = _learned()
    distance = np.arange(-6, 10)
    expected = np.full([16, HEADS], MASKED)
    for place, d in enumerate(distance):
        if lowest <= d < REACH:
            expected[place] = table[d]
    np.testing.assert_array_equal(bias(distance, lowest=lowest), expected)


@pytest.mark.parametrize("reach", [1, 3, 20])
@pytest.mark.parametrize(("length", "before"), [(1, 0), (5, 0), (1, 6), (4, 2), (3, 7)])
def test_causal(length, before, reach):
    bias, table = _learned(reach)
    found = bias.causal(length, before)
    assert found.shape == (1, HEADS, length, before + length)
    np.testing.assert_array_equal(found[0], _causal(table, length, before))


@pytest.mark.parametrize("mode", MODES)
def test_causal_of_a_length_that_the_graph_does_not_know(mode):
    bias, table = _learned()
    find = in_mode(lambda x: bias.causal(tf.shape(x)[1], before=2), mode)
    if mode != "eager":
        find = tf.function(
            find, input_signature=[tf.TensorSpec([None, None])], jit_compile=mode == "xla"
        )
    for length in (1, 5):
        found = find(tf.zeros([3, length]))
        np.testing.assert_array_equal(found[0], _causal(table, length, before=2))


def test_only_what_is_seen_learns():
    """Distances out of reach read the first or last number, but give it no gradient."""
    bias, _ = _learned()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(bias(np.array([-1, 1, 1, 4, 9])))
    gradient = tf.convert_to_tensor(tape.gradient(loss, bias.table.embeddings.value))
    np.testing.assert_array_equal(gradient, [[0, 0], [2, 2], [0, 0], [0, 0]])


def test_what_is_empty_is_hidden_from_all():
    bias, table = _learned()
    empty = np.array([[True, False, False, False], [False, False, False, False]])
    found = hidden_where(tf.constant(empty), bias.causal(2, before=2))
    expected = _causal(table, 2, before=2)
    np.testing.assert_array_equal(found[1], expected)
    expected[:, :, 0] = MASKED
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16", "mixed_float16"])
def test_what_is_masked_has_no_share_in_any_precision(dtype):
    """In float16 the bias is minus infinity, which also gives a share of zero if one place is visible."""
    bias, _ = _learned(dtype=dtype)
    found = bias.causal(3)
    assert found.dtype == bias.compute_dtype
    shares = tf.nn.softmax(tf.cast(found, "float32")).numpy()
    np.testing.assert_array_equal(np.triu(shares[0, 0], 1), np.zeros([3, 3]))
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-6)
    assert bias.table.embeddings.dtype == bias.variable_dtype


def test_config_round_trip():
    bias, _ = _learned(reach=6, slope=0.25, name="bias")
    config = bias.get_config()
    assert [config[name] for name in ("reach", "heads", "slope")] == [6, HEADS, 0.25]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(bias))
    assert again.get_config() == config
    again.set_weights(bias.get_weights())
    np.testing.assert_array_equal(again.causal(3), bias.causal(3))
