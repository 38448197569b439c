import numpy as np
from keras import ops

from tfdeq.cells.attended_past import attend_with_past, empty_past, joined_past

BATCH, HEADS, SIZE = 2, 3, 4


def _floats(*shape, seed=0):
    return ops.convert_to_tensor(np.random.default_rng(seed).normal(size=shape).astype("float32"))


def _own(length, seed):
    return {
        name: _floats(BATCH, HEADS, length, SIZE, seed=seed + place)
        for place, name in enumerate(("key", "value"))
    }


def test_a_past_keeps_the_last_positions():
    past = empty_past(_floats(BATCH), 3, HEADS, SIZE)
    assert past["key"].shape == (BATCH, HEADS, 3, SIZE)
    first, second = _own(2, 1), _own(2, 3)
    past = joined_past(past, first, 3)
    np.testing.assert_array_equal(past["length"], [2, 2])
    np.testing.assert_array_equal(past["key"][:, :, 1:], first["key"])
    np.testing.assert_array_equal(past["key"][:, :, 0], 0)
    past = joined_past(past, second, 3)
    np.testing.assert_array_equal(past["length"], [3, 3])
    np.testing.assert_array_equal(past["value"][:, :, 0], first["value"][:, :, 1])
    np.testing.assert_array_equal(past["value"][:, :, 1:], second["value"])


def test_with_lengths_each_example_keeps_its_own_last_positions():
    past = joined_past(empty_past(_floats(BATCH), 3, HEADS, SIZE), _own(3, 1), 3)
    own = _own(2, 5)
    found = joined_past(past, own, 3, ops.convert_to_tensor([1, 0]))
    np.testing.assert_array_equal(found["key"][0, :, 2], own["key"][0, :, 0])
    np.testing.assert_array_equal(found["key"][0, :, :2], past["key"][0, :, 1:])
    np.testing.assert_array_equal(found["key"][1], past["key"][1])


def test_attention_to_the_past_is_attention_to_all_of_it():
    query, key, value = (_floats(BATCH, HEADS, SIZE, seed=seed) for seed in (1, 2, 3))
    past = _own(5, 7)
    past_bias, own_bias = _floats(BATCH, HEADS, 5, seed=9), _floats(1, HEADS, 1, seed=10)
    found = attend_with_past(query, key, value, past, past_bias, own_bias)
    keys = np.concatenate([past["key"], np.array(key)[:, :, None]], axis=2)
    values = np.concatenate([past["value"], np.array(value)[:, :, None]], axis=2)
    bias = np.concatenate([past_bias, np.broadcast_to(own_bias, (BATCH, HEADS, 1))], axis=2)
    logits = np.einsum("bhc,bhpc->bhp", query, keys) / np.sqrt(SIZE) + bias
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, np.einsum("bhp,bhpc->bhc", weights, values), rtol=1e-5)
