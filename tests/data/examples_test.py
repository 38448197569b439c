"""Tests of tfdeq.data.examples."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfdeq.data.examples import Examples, evaluation_examples, training_examples

X = np.arange(10, dtype="float32")
SPLIT = (X[:, None], X.astype("int32"))


def rows(count, **settings):
    found = training_examples(SPLIT, **{"batch_size": 4, "seed": 3, **settings})
    return [targets.numpy() for _, targets in itertools.islice(found, count)]


def test_each_epoch_has_every_example_once_in_an_order_of_its_own():
    drawn = np.concatenate(rows(5))
    first, second = drawn[:10], drawn[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second) != list(range(10))
    assert not np.array_equal(np.concatenate(rows(5, seed=4)), drawn)
    inputs, targets = next(iter(training_examples(SPLIT, batch_size=4, seed=3)))
    np.testing.assert_array_equal(inputs[:, 0], targets)


def test_a_step_is_the_same_wherever_one_begins_and_whoever_reads_it():
    whole = rows(6)
    np.testing.assert_array_equal(rows(3, start_step=3), whole[3:])
    parts = [rows(6, shard=shard, shards=2) for shard in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_an_evaluation_has_each_example_once():
    batches = list(evaluation_examples(SPLIT, batch_size=4))
    assert {len(weights) for *_, weights in batches} == {4}
    counted = np.concatenate([t[w > 0] for _, t, w in batches])
    assert sorted(counted) == list(range(10))
    one = list(evaluation_examples(SPLIT, batch_size=64))
    assert len(one) == 1
    assert one[0][2].sum() == 10


def test_the_fingerprint_is_that_of_the_arrays():
    data = Examples(SPLIT, SPLIT, SPLIT)
    other = data._replace(test=(SPLIT[0] + 1, SPLIT[1]))
    assert data.fingerprint() == Examples(SPLIT, SPLIT, SPLIT).fingerprint()
    assert data.fingerprint() != other.fingerprint()


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="as many inputs as targets"):
        training_examples((X, X[:3]), batch_size=2, seed=0)
    with pytest.raises(ValueError, match="one example at least"):
        next(evaluation_examples((X[:0], X[:0]), 4))


def _jittered(inputs, targets, seed):
    noise = tf.random.stateless_uniform(tf.shape(targets), seed, alg="philox")
    return inputs + noise[:, None], targets


def test_augmented_rows_follow_from_seed_and_step_alone():
    def inputs(count, **settings):
        settings = {"batch_size": 4, "seed": 3, "augment": _jittered, **settings}
        found = training_examples(SPLIT, **settings)
        return [x.numpy()[:, 0] for x, _ in itertools.islice(found, count)]

    whole, plain = inputs(6), rows(6)
    np.testing.assert_array_equal(
        np.floor(whole), plain
    )  # the same examples as without augmentation
    assert len(np.unique(np.array(whole) - plain)) == 24
    np.testing.assert_array_equal(inputs(3, start_step=3), whole[3:])
    parts = [inputs(6, shard=shard, shards=2) for shard in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    other = np.array(inputs(6, seed=2**40 + 3)) % 1
    assert not np.isclose(other, np.array(whole) % 1).any()
