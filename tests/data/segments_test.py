"""Tests of tfdeq.data.segments."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tfdeq.data import evaluation_segments, training_segments

TOKENS = np.arange(100, dtype=np.int32)  # each token is its own place
# (100 − 1 − 7) // 3 = 30 tokens per row: four steps, and two tokens left over.
OPTIONS = {"sequence_length": 7, "batch_size": 3, "seed": 5}
STEPS = 4


def _batches(dataset, count=None):
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


def _assert_equal(received, expected):
    for batch, other in zip(received, expected, strict=True):
        for one, two in zip(batch, other, strict=True):
            np.testing.assert_array_equal(one, two)


# --- training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_rows_go_on_until_the_text_begins_again(dtype):
    dataset = training_segments(TOKENS.astype(dtype), **OPTIONS)
    assert dataset.element_spec == (
        tf.TensorSpec([3, 7], tf.int32),
        tf.TensorSpec([3, 7], tf.int32),
        tf.TensorSpec([3], tf.bool),
    )
    batches = _batches(dataset, 3 * STEPS)
    for step, (inputs, targets, continues) in enumerate(batches):
        np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(7))
        np.testing.assert_array_equal(targets, inputs + 1)
        np.testing.assert_array_equal(continues, [step % STEPS > 0] * 3)
        np.testing.assert_array_equal(np.diff(inputs[:, 0]), [30, 30])  # the rows are adjacent
        if step % STEPS:
            np.testing.assert_array_equal(inputs[:, 0], batches[step - 1][0][:, -1] + 1)


def test_epochs_begin_elsewhere():
    batches = _batches(training_segments(TOKENS, **OPTIONS), 60 * STEPS)
    firsts = np.array([inputs[0, 0] for inputs, _, _ in batches[::STEPS]])
    values, counts = np.unique(firsts, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(7))
    # 60 epochs and 7 places: 8.6 of each are expected, with standard deviation 2.7.
    assert counts.min() >= 2
    other = _batches(training_segments(TOKENS, **{**OPTIONS, "seed": 6}), 60 * STEPS)
    assert (firsts != [inputs[0, 0] for inputs, _, _ in other[::STEPS]]).any()


def test_draws_are_those_of_every_machine():
    # Fixed draws, on which resuming from a checkpoint on another machine depends.
    dataset = training_segments(TOKENS, **{**OPTIONS, "seed": 0})
    firsts = [int(inputs[0, 0]) for inputs, _, _ in _batches(dataset, 6 * STEPS)[::STEPS]]
    assert firsts == [3, 5, 3, 6, 4, 1]


@pytest.mark.parametrize("start", [0, 1, STEPS - 1, STEPS, 2 * STEPS + 1])
def test_resuming_depends_on_seed_and_step_alone(start):
    whole = _batches(training_segments(TOKENS, **OPTIONS), 4 * STEPS)
    resumed = training_segments(TOKENS, **OPTIONS, start_step=start)
    _assert_equal(_batches(resumed, 4 * STEPS - start), whole[start:])


def test_training_starts_late_at_no_cost():
    dataset = training_segments(TOKENS, **{**OPTIONS, "seed": -1}, start_step=10**15)
    inputs, _, continues = _batches(dataset, 1)[0]
    np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(7))
    np.testing.assert_array_equal(continues, [False] * 3)  # 10^15 is a multiple of the steps


@pytest.mark.parametrize("shards", [1, 2, 3, 6])
def test_shards_are_the_rows_of_the_whole_batch(shards):
    """Each worker's rows also continue, because they are the same in every step."""
    options = {"sequence_length": 5, "batch_size": 6, "seed": 2, "start_step": 1}
    whole = _batches(training_segments(TOKENS, **options), 5)
    parts = [
        _batches(training_segments(TOKENS, **options, shard=shard, shards=shards), 5)
        for shard in range(shards)
    ]
    joined = [
        [np.concatenate([part[step][index] for part in parts]) for index in range(3)]
        for step in range(5)
    ]
    _assert_equal(joined, whole)


@settings(max_examples=10)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 40), st.integers(0, 1000))
@example(length=1, rows=1, more=0, seed=0)
def test_an_epoch_reads_no_token_twice_and_none_beyond_the_end(length, rows, more, seed):
    """Starting with the shortest stream. Each token is its own place, so gaps and ends are visible."""
    tokens = np.arange(rows * length + length + 1 + more)
    steps = ((len(tokens) - 1 - length) // rows) // length
    dataset = training_segments(tokens, sequence_length=length, batch_size=rows, seed=seed)
    batches = _batches(dataset, 2 * steps)
    for epoch in (batches[:steps], batches[steps:]):
        inputs = np.concatenate([batch[0] for batch in epoch], axis=1)
        targets = np.concatenate([batch[1] for batch in epoch], axis=1)
        np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(steps * length))
        np.testing.assert_array_equal(targets, inputs + 1)
        assert len(np.unique(inputs)) == inputs.size
        assert inputs[0, 0] < length
        assert [batch[2].all() for batch in epoch] == [step > 0 for step in range(steps)]
        # An epoch omits less than one segment per row, and one at the ends.
        assert len(tokens) - inputs.size <= rows * length + length


# --- evaluation -------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(2, 60), st.integers(1, 70), st.integers(1, 9))
@example(tokens=61, length=7, rows=1)  # one row
@example(tokens=61, length=5, rows=4)  # rows that the segments divide
@example(tokens=10, length=64, rows=2)  # segments longer than a row
@example(tokens=2, length=3, rows=9)  # more rows than predictions
def test_every_token_but_the_first_is_predicted_once(tokens, length, rows):
    text = np.arange(tokens)
    dataset = evaluation_segments(text, sequence_length=length, batch_size=rows)
    batches = _batches(dataset)
    assert dataset.cardinality() == len(batches)
    inputs, targets, weights = (np.concatenate(part, axis=1) for part in zip(*batches, strict=True))
    assert inputs.shape == targets.shape == weights.shape == (rows, len(batches) * length)
    counted = weights == 1
    assert (counted | (weights == 0)).all()
    np.testing.assert_array_equal(np.sort(targets[counted]), np.arange(1, tokens))
    np.testing.assert_array_equal(targets[counted], inputs[counted] + 1)
    # In each row, the counted tokens start at the first one and have no gaps.
    assert (np.diff(counted.astype(int), axis=1) <= 0).all()
    for row, seen in zip(inputs, counted, strict=True):
        np.testing.assert_array_equal(np.diff(row[seen]), np.ones(max(seen.sum() - 1, 0)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_evaluation_is_of_one_shape(dtype):
    dataset = evaluation_segments(TOKENS.astype(dtype), sequence_length=7, batch_size=3)
    assert [spec.shape for spec in dataset.element_spec] == [(3, 7)] * 3
    assert [spec.dtype for spec in dataset.element_spec] == [tf.int32, tf.int32, tf.float32]
    # 99 predictions are 33 per row: four segments of 7, and one of 5 and two that do not count.
    weights = [batch[2].sum() for batch in _batches(dataset)]
    assert weights == [21, 21, 21, 21, 15]


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sequence_length": 0}, "sequence_length must be 1 or more; received 0"),
        ({"batch_size": -1}, "batch_size must be 1 or more; received -1"),
        ({"tokens": TOKENS[None]}, r"1-D array.*\(1, 100\)"),
        ({"tokens": TOKENS / 2}, "float64"),
        ({"tokens": TOKENS[:1]}, r"at least two; received shape \(1,\)"),
    ],
)
def test_bad_arguments_of_both(options, match):
    options = {"tokens": TOKENS, "sequence_length": 5, "batch_size": 2} | options
    tokens = options.pop("tokens")
    with pytest.raises(ValueError, match=match):
        training_segments(tokens, **options, seed=0)
    with pytest.raises(ValueError, match=match):
        evaluation_segments(tokens, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"start_step": -3}, "start_step must be 0 or more; received -3"),
        ({"shards": 2}, "shards must divide the batch of 3"),
        ({"shard": 3, "shards": 3}, "shard 3 of 3"),
    ],
)
def test_other_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        training_segments(TOKENS, **OPTIONS, **options)


def test_the_shortest_stream():
    """B T + T + 1 tokens, as documented."""
    shortest = 3 * 7 + 7 + 1
    batches = _batches(training_segments(TOKENS[:shortest], **OPTIONS), 3)
    assert [batch[2].any() for batch in batches] == [False] * 3  # each batch is an epoch
    with pytest.raises(
        ValueError, match="28 tokens is too short for 3 rows of segments of 7 tokens"
    ):
        training_segments(TOKENS[: shortest - 1], **OPTIONS)
