"""Requests fit the signature's inputs or are refused; answers fit its outputs."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.support.server_cases import ANSWER, metadata
from tfdeq.serving.client.client_values import SETTINGS, as_dtype, request_values, served_signature
from tfdeq.serving.client.model_client import Client, ServerError

NONE = dict.fromkeys(SETTINGS)


def served(**inputs):
    return served_signature(metadata(**inputs), "serving_default")


def of(dtype, *shape):
    return tf.TensorSpec([None, *shape], dtype)


def refusal(value, dtype):
    with pytest.raises(ValueError, match="a name is ") as raised:
        as_dtype(np.asarray(value), dtype, "a name")
    return str(raised.value)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([1, -(2**31), 2**31 - 1], tf.int32),
        ([1.0, -(2.0**31)], tf.int32),
        (np.uint64([0, 2**63 - 1]), tf.int64),
        (np.uint64([2**64 - 1]), tf.uint64),
        ([True, False], tf.int32),
        ([0, 1], tf.bool),
        ([0.0, 255.0], tf.uint8),
        ([], tf.int32),
        ([np.nan, np.inf, 1.5], tf.float32),
        ([2**70, 1], tf.float32),
        ([1, 2], tf.bfloat16),
        (np.ones([2], tf.bfloat16.as_numpy_dtype), tf.float32),
        ([1.5, 2.0], tf.complex64),
    ],
)
def test_values_that_a_dtype_holds(value, dtype):
    found = as_dtype(np.asarray(value), dtype, "a name")
    assert found.dtype == dtype.as_numpy_dtype
    # complex represents all of these; 2**63 - 1 is the same float in both.
    np.testing.assert_array_equal(found.astype(complex), np.asarray(value).astype(complex))


@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [
        (
            [[1, 3_000_000_000]],
            tf.int32,
            "from -2,147,483,648 to 2,147,483,647; received 3000000000",
        ),
        ([-(2**31) - 1], tf.int32, "received -2147483649"),
        ([2**63], tf.int64, "received 9223372036854775808"),
        ([2.0**63], tf.int64, "received 9.2"),
        ([2**70, 1], tf.int64, f"received {2**70}"),
        ([256], tf.uint8, "from 0 to 255; received 256"),
        ([-1], tf.uint64, "received -1"),
        ([2], tf.bool, "from 0 to 1; received 2"),
        ([1.0, 1.5], tf.int32, "whole numbers.*received 1.5"),
        ([np.nan], tf.int32, "received nan"),
        ([np.inf], tf.int32, "received inf"),
        ([1e39], tf.float32, "up to 3.4.*received 1e[+]39"),
        ([70_000], tf.float16, "up to 65.*received 70000"),
        ([10**400], tf.float32, "cannot hold"),
        ([1j], tf.float32, "complex"),
        (["1"], tf.int32, "received <U1"),
        ([None, 1], tf.float32, "received None"),
        ([1], tf.string, "text; received 1"),
    ],
)
def test_values_that_a_dtype_cannot_hold(value, dtype, says):

    assert re.search(says, refusal(value, dtype))


def test_text_is_sent_as_bytes():
    found = as_dtype(np.asarray([["a", "ü"]]), tf.string, "a name")
    assert found.tolist() == [[b"a", "ü".encode()]]
    assert as_dtype(np.asarray([b"\xff"]), tf.string, "a name").tolist() == [b"\xff"]


def test_settings_are_the_models_own_unless_named():
    given = {"x": np.zeros([3, 2])}
    found = request_values(given, served(), NONE)
    assert found["x"].dtype == found["tolerance"].dtype == np.float32
    assert found["max_steps"].tolist() == [0, 0, 0]
    assert found["max_steps"].dtype == np.int32
    found = request_values(given, served(), {"tolerance": 0.1, "max_steps": [1, 2, 3]})
    np.testing.assert_array_equal(found["tolerance"], np.float32([0.1] * 3))
    assert found["max_steps"].tolist() == [1, 2, 3]
    found = request_values({**given, "max_steps": np.array([4, 5, 6])}, served(), NONE)
    assert found["max_steps"].tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("given", "settings", "says"),
    [
        ({}, {}, "unknown: none; missing: x. It takes max_steps, tolerance, x"),
        ({"x": (2, 2), "z": (2,)}, {}, "unknown: z; missing: none"),
        ({"x": (2, 3)}, {}, r"'x' is \[any, 2\]; received \[2, 3\]"),
        ({"x": (2, 2, 1)}, {}, r"'x' is \[any, 2\]"),
        ({"x": (2, 2)}, {"tolerance": [0.1]}, "each of the 2 examples"),
        ({"x": (2, 2)}, {"max_steps": [[1, 1]]}, "each of the 2 examples"),
        ({"x": (2, 2)}, {"max_steps": 1.5}, "'max_steps' is int32.*received 1.5"),
        ({"x": (2, 2)}, {"max_steps": 2**31}, "'max_steps' is int32"),
    ],
)
def test_what_a_signature_does_not_take(given, settings, says):
    given = {name: np.zeros(shape) for name, shape in given.items()}
    given = given or {"max_steps": np.zeros([2])}
    with pytest.raises(ValueError, match=says):
        request_values(given, served(), {**NONE, **settings})


def test_signatures_of_others_have_no_settings():
    definitions = metadata()
    for name in SETTINGS:
        del definitions.signature_def["serving_default"].inputs[name]
    of_others = served_signature(definitions, "serving_default")
    assert request_values({"x": np.zeros([1, 2])}, of_others, NONE).keys() == {"x"}
    with pytest.raises(ValueError, match="unknown: tolerance"):
        request_values({"x": np.zeros([1, 2])}, of_others, {**NONE, "tolerance": 0.1})


def test_signatures_that_are_not_there_or_cannot_be_read():
    with pytest.raises(ServerError, match="no signature 'other'.*serving_default"):
        served_signature(metadata(), "other")
    damaged = metadata()
    damaged.signature_def["serving_default"].inputs["x"].dtype = 0
    with pytest.raises(ServerError, match="cannot be read"):
        served_signature(damaged, "serving_default")


class Transport:
    """A server whose newest version changes."""

    def __init__(self, known):
        self.known, self.asked = known, 0

    def signatures(self, deadline):
        self.asked += 1
        return self.known

    def predict(self, values, signature, known, deadline):
        now = served_signature(self.known, signature)
        if values["x"].dtype != now.inputs["x"].dtype.as_numpy_dtype:
            raise ServerError("refused: another dtype")
        return {name: np.asarray(value) for name, value in ANSWER.items()}


@pytest.mark.parametrize("first", [of(tf.int32, 2), of(tf.float32, 3)])
def test_a_new_version_with_another_signature(first):
    """Its metadata are read again when a request, or the client's check, does not fit."""
    client = Client("127.0.0.1:9", "model")
    client._transport = transport = Transport(metadata(x=first))
    client.predict({"x": np.zeros([2, *first.shape[1:]])})
    transport.known = metadata(x=of(tf.float32, 2))
    assert client.predict({"x": np.zeros([2, 2])})["steps"].tolist() == [3, 4]
    assert transport.asked == 2
    with pytest.raises(ValueError, match="'x' is"):
        client.predict({"x": np.zeros([2, 9])})
    assert transport.asked == 3
