"""Tracing, which is common to all signatures."""

import pytest
import tensorflow as tf

from tfdeq.serving.signatures.signature import input_specs, trace


def test_inputs_keep_their_names():
    specs = {
        "b": tf.TensorSpec([None, 2], tf.float32, "b"),
        "a": tf.TensorSpec([None], tf.int32, "a"),
    }
    function = trace(lambda a, b: {"sum": b + tf.cast(a, b.dtype)[:, None]}, specs)
    assert input_specs(function) == specs
    found = function(a=tf.constant([1, 2]), b=tf.constant([[1.0, 0.0], [0.0, 1.0]]))
    assert found["sum"].numpy().tolist() == [[2.0, 1.0], [2.0, 3.0]]


def test_outputs_that_cannot_be_split_are_refused():
    specs = {"x": tf.TensorSpec([None, 2], tf.float32, "x")}
    with pytest.raises(ValueError, match=r"'mean' has the shape \(\)"):
        trace(lambda x: {"mean": tf.reduce_mean(x)}, specs)
