"""Tests of tfdeq.runs.measures."""

import json

import keras
import numpy as np
import pytest

from tfdeq.runs import measures

TARGETS = np.array([0, 2, 1])
LOGITS = np.random.default_rng(0).normal(size=(3, 3)).astype("float32")
CROSS_ENTROPY = measures.CROSS_ENTROPY


def test_a_measure_is_the_mean_of_each_example():
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
    found = measures.per_example(CROSS_ENTROPY)(TARGETS, LOGITS)
    np.testing.assert_allclose(found, -log_p[np.arange(3), TARGETS], rtol=1e-5)
    # For a sequence, the mean over its places.
    places = measures.per_example("sparse_categorical_accuracy")(
        np.stack([TARGETS, TARGETS]), np.stack([LOGITS, -LOGITS])
    )
    expected = [(np.argmax(each, 1) == TARGETS).mean() for each in (LOGITS, -LOGITS)]
    np.testing.assert_allclose(places, expected, rtol=1e-6)


def test_what_is_written_is_read_as_the_same():
    given = {"loss": CROSS_ENTROPY, "accuracy": "sparse_categorical_accuracy"}
    text = json.loads(json.dumps(measures.described(given, TARGETS, LOGITS)))
    assert set(text) == set(given)
    for name, measure in measures.restored(text).items():
        expected = measures.per_example(given[name])(TARGETS, LOGITS)
        np.testing.assert_array_equal(measure(TARGETS, LOGITS), expected)


def test_what_keras_gives_back_as_another_is_left_out():
    """Huber's delta is not saved, and a caller's function is not known in other processes."""
    given = {
        "huber": keras.losses.Huber(delta=0.1),
        "own": lambda targets, outputs: outputs[:, 0],
        "error": "mean_squared_error",
    }
    assert set(measures.described(given, LOGITS * 2, LOGITS)) == {"error"}


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no loss or metric function 'accuracy_of_mine'"):
        measures.per_example("accuracy_of_mine")
