"""Tests of tfdeq.rows: settings and choices for each sample."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tfdeq import solvers
from tfdeq.iteration import iterate
from tfdeq.numerics.fixed_shapes import for_litert
from tfdeq.rows import aligned, choose, per_sample


def test_per_sample_broadcasts_and_defaults():
    batch = tf.constant([3])
    assert per_sample("max_steps", None, 7, batch, tf.int32).numpy().tolist() == [7, 7, 7]
    assert per_sample("max_steps", [1, 2, 3], 7, batch, tf.int32).numpy().tolist() == [1, 2, 3]
    assert per_sample("tolerance", 0.5, 1.0, batch, tf.float64).dtype == tf.float64
    with pytest.raises(ValueError, match=r"max_steps must be of integers; received 2\.5"):
        per_sample("max_steps", 2.5, 7, batch, tf.int32)


def test_choose_takes_rows_of_a_nest():
    one = {"a": tf.ones([2, 3, 1]), "shared": tf.constant(5)}
    other = {"a": tf.zeros([2, 3, 1]), "shared": tf.constant(6)}
    chosen = choose(tf.constant([False, True]), one, other)
    np.testing.assert_array_equal(chosen["a"][:, 0, 0], [0, 1])
    assert int(chosen["shared"]) == 5
    assert aligned(tf.constant([1.0, 2.0]), one["a"]).shape == [2, 1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 0.0}, r"tolerance must be greater than 0 for every sample; received 0"),
        ({"tolerance": [1e-3, -1.0]}, r"tolerance must be greater than 0.*received \[ 0.001 -1"),
        ({"tolerance": float("nan")}, r"tolerance must be greater than 0.*received nan"),
        ({"max_steps": 0}, r"max_steps must be at least 1 for every sample; received 0"),
        ({"max_steps": [3, 0]}, r"max_steps must be at least 1.*received \[3 0\]"),
        (
            {"tolerance": [[1e-3]]},
            r"tolerance must be a scalar or of shape \[2\], one for each sample; received shape \(1, 1\)",
        ),
    ],
    ids=["zero", "negative", "nan", "no steps", "no steps of one", "rank"],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        iterate(lambda z: 0.5 * z, tf.zeros([2, 3]), solvers.get("broyden"), **settings)


@pytest.mark.parametrize("litert", [False, True])
def test_powers_of_two(litert):
    usual = np.float32([1e-37, 0.3, 0.5, 0.75, 1.0, 1.9, 7.0, 3e36])
    largest = np.float32([2.0**125, 3e38])
    unusable = np.float32([0.0, np.inf, np.nan])

    @tf.function
    def powers(values):
        with for_litert() if litert else contextlib.nullcontext():
            return tfdeq.rows.power_of_two(values)

    found = powers(tf.constant(np.concatenate([usual, largest, unusable]))).numpy()
    assert (np.frexp(found)[0] == 0.5).all(), "powers of two"
    ratios = usual / found[: len(usual)]
    # The logarithm of a power of two may be rounded down.
    assert (ratios >= 1).all()
    assert (ratios < 2.0001 if litert else ratios < 2).all()
    assert np.isfinite(1 / found).all()
    assert (1 / found >= np.finfo(np.float32).tiny).all(), "normal numbers"
    np.testing.assert_array_equal(found[-len(unusable) :], 1.0)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_rows_are_taken_but_for_what_samples_share(batch):
    values = (tf.range(batch), tf.ones([1, 3]), tf.constant(2.0), tf.range(batch)[:, None])
    indices = tf.range(batch)[::-1][:2]
    rows, shared, scalar, other = tfdeq.rows.take_rows(values, indices)
    np.testing.assert_array_equal(rows, indices)
    np.testing.assert_array_equal(other[:, 0], indices)
    np.testing.assert_array_equal(shared, np.ones([1, 3]))
    assert float(scalar) == 2.0


@pytest.mark.parametrize("size", [0, 2])
@pytest.mark.parametrize("known", [False, True])
def test_rows_with_and_without_entries_are_scattered(size, known):
    spec = tf.TensorSpec([None, size if known else None])
    scattered = tf.function(tfdeq.rows.scattered, input_signature=[spec, INDICES, spec])
    whole, parts = np.zeros([4, size], np.float32), np.ones([2, size], np.float32)
    found = scattered(whole, tf.constant([[3], [1]]), parts)
    whole[[3, 1]] = parts
    np.testing.assert_array_equal(found, whole)


INDICES = tf.TensorSpec([None, 1], tf.int32)
