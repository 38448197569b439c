"""Tests of tfdeq.data.windows."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfdeq.data import evaluation_windows, training_windows

TOKENS = np.arange(100, dtype=np.int32)  # each token is its own place


def _batches(dataset, count=None):
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("windows", [training_windows, evaluation_windows])
def test_targets_follow_inputs(windows, dtype):
    seed = {"seed": 1} if windows is training_windows else {}
    dataset = windows(TOKENS.astype(dtype), sequence_length=5, batch_size=4, **seed)
    for spec in dataset.element_spec[:2]:
        assert spec == tf.TensorSpec([4, 5], tf.int32)
    for inputs, targets, *_ in _batches(dataset.take(20 if windows is training_windows else 4)):
        np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(5))
        np.testing.assert_array_equal(targets, inputs + 1)


def test_training_reaches_every_place():
    dataset = training_windows(TOKENS[:12], sequence_length=5, batch_size=64, seed=3)
    starts = np.concatenate([inputs[:, 0] for inputs, _ in _batches(dataset, 30)])
    values, counts = np.unique(starts, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(7))
    assert counts.min() > 0.8 * counts.mean()  # 274 expected of each; 0.8 is 3.6 sigma away


def test_training_depends_on_seed_and_step_alone():
    options = {"sequence_length": 8, "batch_size": 16}
    whole = _batches(training_windows(TOKENS, **options, seed=5), 12)
    for start in (0, 1, 7):
        resumed = training_windows(TOKENS, **options, seed=5, start_step=start)
        for expected, received in zip(whole[start:], _batches(resumed, 12 - start), strict=True):
            np.testing.assert_array_equal(expected, received)
    starts = [inputs[:, 0].tolist() for inputs, _ in whole]
    assert len(set(map(tuple, starts))) == 12
    other = _batches(training_windows(TOKENS, **options, seed=6), 12)
    assert not any(np.array_equal(a, b) for (a, _), (b, _) in zip(whole, other, strict=True))


def test_training_draws_are_those_of_every_machine():
    # A fixed draw, on which resuming from a checkpoint on another machine depends.
    inputs, _ = _batches(training_windows(TOKENS, sequence_length=1, batch_size=6, seed=0), 1)[0]
    np.testing.assert_array_equal(inputs[:, 0], [11, 92, 3, 95, 68, 18])


def test_training_starts_late_at_no_cost():
    dataset = training_windows(TOKENS, sequence_length=5, batch_size=2, seed=-1, start_step=10**15)
    assert len(_batches(dataset, 2)) == 2


def test_evaluation_predicts_every_token_once():
    # 99 predictions are 14 windows of 7 and one of 1; there are 4 batches of 4 windows, one window
    # empty.
    dataset = evaluation_windows(TOKENS, sequence_length=7, batch_size=4)
    assert dataset.cardinality() == 4
    batches = _batches(dataset)
    assert {inputs.shape for inputs, _, _ in batches} == {(4, 7)}
    inputs, targets, weights = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(targets[weights > 0], np.arange(1, 100))
    np.testing.assert_array_equal(inputs[weights > 0], np.arange(99))
    assert set(weights.ravel()) == {0, 1}


def test_evaluation_uses_the_last_window():
    dataset = evaluation_windows(TOKENS[:11], sequence_length=5, batch_size=2)
    ((inputs, targets, weights),) = _batches(dataset)
    np.testing.assert_array_equal(inputs.ravel(), np.arange(10))
    np.testing.assert_array_equal(targets.ravel(), np.arange(1, 11))
    np.testing.assert_array_equal(weights, np.ones([2, 5]))
    # With one target fewer, the window is shorter.
    _, targets, weights = _batches(
        evaluation_windows(TOKENS[:10], sequence_length=5, batch_size=2)
    )[0]
    np.testing.assert_array_equal(targets[weights > 0], np.arange(1, 10))


@pytest.mark.parametrize(
    ("max_windows", "expected"), [(1, 1), (6, 6), (7, 7), (32, 32), (33, 33), (1000, 33)]
)
def test_evaluation_spreads_evenly(max_windows, expected):
    """Exactly the requested number of windows, for any batch size."""
    dataset = evaluation_windows(TOKENS, sequence_length=3, batch_size=2, max_windows=max_windows)
    batches = _batches(dataset)
    starts = np.concatenate([inputs[weights[:, 0] > 0, 0] for inputs, _, weights in batches])
    assert len(starts) == expected
    assert (starts % 3 == 0).all()
    gaps = np.diff(np.append(starts, 99) // 3)
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sequence_length": 0}, "sequence_length must be 1 or more; received 0"),
        ({"batch_size": -1}, "batch_size must be 1 or more; received -1"),
        ({"sequence_length": 100}, "100 tokens; a window of 100 and its targets take 101"),
        ({"tokens": TOKENS[None]}, r"1-D array.*\(1, 100\)"),
        ({"tokens": TOKENS / 2}, "float64"),
    ],
)
def test_bad_arguments_of_both(options, match):
    options = {"tokens": TOKENS, "sequence_length": 5, "batch_size": 2} | options
    tokens = options.pop("tokens")
    with pytest.raises(ValueError, match=match):
        training_windows(tokens, **options, seed=0)
    with pytest.raises(ValueError, match=match):
        evaluation_windows(tokens, **options)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="start_step must be 0 or more; received -3"):
        training_windows(TOKENS, sequence_length=5, batch_size=2, seed=0, start_step=-3)
    with pytest.raises(ValueError, match="max_windows must be 1 or more; received 0"):
        evaluation_windows(TOKENS, sequence_length=5, batch_size=4, max_windows=0)


def test_the_longest_window_is_the_whole_stream():
    dataset = training_windows(TOKENS, sequence_length=99, batch_size=2, seed=0)
    inputs, targets = _batches(dataset, 1)[0]
    np.testing.assert_array_equal(inputs, [TOKENS[:-1]] * 2)
    np.testing.assert_array_equal(targets, [TOKENS[1:]] * 2)


def test_shards_are_the_rows_of_the_whole_batch():
    options = {"sequence_length": 5, "batch_size": 6, "seed": 2, "start_step": 3}
    whole = _batches(training_windows(TOKENS, **options), 1)[0]
    parts = [
        _batches(training_windows(TOKENS, **options, shard=shard, shards=3), 1)[0]
        for shard in range(3)
    ]
    for index in (0, 1):
        np.testing.assert_array_equal(np.concatenate([part[index] for part in parts]), whole[index])
