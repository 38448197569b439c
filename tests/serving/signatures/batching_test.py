"""Requests joined in the graph by TensorFlow's own op: which share a batch, and their answers."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from tfdeq.serving.signatures.batching import Batching, Queues

WAIT = 10_000_000  # µs: until the batch is full


def joined(batching, queues=None, scale=1.0):
    """Returns x -> [x, the number of rows in its batch]."""
    inner = tf.function(
        lambda x: [scale * x, tf.fill(tf.shape(x)[:1], tf.shape(x)[0])], autograph=False
    ).get_concrete_function(tf.TensorSpec([None, None]))
    queues = queues or Queues(batching)
    return tf.function(lambda x: queues.join(inner, [x], f"{scale}"), autograph=False)


def ask_at_once(requests):
    """[(function, x)] -> the answers, requested in threads at the same time."""
    answers = [None] * len(requests)

    def ask(place, function, x):
        answers[place] = [value.numpy() for value in function(tf.constant(x))]

    threads = [
        threading.Thread(target=ask, args=(place, *request))
        for place, request in enumerate(requests)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return answers


def rows(count, first):
    return np.float32(first) + np.arange(2 * count, dtype=np.float32).reshape(count, 2)


def test_requests_share_a_batch_and_get_their_own_rows():
    function = joined(Batching((4,), threads=1, timeout_micros=WAIT))
    given = [rows(count, 100 * count) for count in (1, 1, 2)]
    answers = ask_at_once([(function, x) for x in given])
    for x, (found, batch) in zip(given, answers, strict=True):
        np.testing.assert_array_equal(found, x)
        assert batch.tolist() == [4] * len(x)


def test_a_batch_is_filled_up_to_an_allowed_size():
    function = joined(Batching((2, 8), threads=1))
    for count, size in ((1, 2), (2, 2), (3, 8)):
        found, batch = function(tf.constant(rows(count, 0)))
        np.testing.assert_array_equal(found, rows(count, 0))
        assert batch.numpy().tolist() == [size] * count


def test_more_rows_than_the_largest_size_are_split():
    function = joined(Batching((2, 4), threads=1))
    found, batch = function(tf.constant(rows(11, 0)))
    np.testing.assert_array_equal(found, rows(11, 0))
    assert batch.numpy().max() == 4


@pytest.mark.parametrize("same_version", [False, True])
def test_functions_are_not_mixed(same_version):
    """Neither two queues of one version, nor versions with equal queue names."""
    batching = Batching((1, 2), threads=1, timeout_micros=50_000)
    one = Queues(batching)
    other = one if same_version else Queues(batching)
    first = joined(batching, one, scale=2.0)
    second = joined(batching, other, scale=3.0 if same_version else 2.0)
    answers = ask_at_once([(first, rows(1, 0)), (second, rows(1, 7))])
    np.testing.assert_array_equal(answers[0][0], 2 * rows(1, 0))
    np.testing.assert_array_equal(answers[1][0], (3 if same_version else 2) * rows(1, 7))
    assert answers[0][1].tolist() == answers[1][1].tolist() == [1]
