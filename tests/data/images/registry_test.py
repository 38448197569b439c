"""Pictures by name, parts of splits, and changes of training pictures."""

import numpy as np
import pytest
import tensorflow as tf

from tfdeq.data.examples import training_examples
from tfdeq.data.images import Augmentation, load, splits
from tfdeq.data.images.registry import takers

PICTURES = np.random.default_rng(0).integers(1, 256, (12, 5, 6, 2), np.uint8)
CLASSES = np.arange(12, dtype=np.int32)


def test_options_that_a_data_set_does_not_take():
    assert takers("image_size") == ["folder"]
    assert takers("validation") == ["cifar10", "fashion_mnist", "mnist"]
    with pytest.raises(ValueError, match="'mnist' takes no image_size; received 32"):
        load("mnist", image_size=32)
    with pytest.raises(ValueError, match="Known: cifar10, fashion_mnist, folder, mnist"):
        load("imagenet")


def test_a_part_of_a_split_has_the_same_pictures_in_any_order():
    some = splits.part((PICTURES, CLASSES), 5)
    assert len(some[0]) == 5
    assert list(some[1]) == sorted(some[1])
    order = np.random.default_rng(1).permutation(12)
    other = splits.part((PICTURES[order], CLASSES[order]), 5)
    assert sorted(other[1]) == list(some[1])
    for count in (0, 12, 13):
        assert splits.part((PICTURES, CLASSES), count)[1] is CLASSES


def test_shares_are_about_what_was_asked_for():
    found = np.random.default_rng(0).integers(0, 2**64, 20000, np.uint64)
    counts = np.bincount(splits.shares(found, validation=0.1, test=0.2)) / 20000
    # Three standard deviations of a share of 20,000 draws are below 0.01.
    np.testing.assert_allclose(counts, [0.7, 0.1, 0.2], atol=0.01)


def test_pictures_too_much_alike_to_be_split():
    same = (np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="too much alike"):
        splits.set_aside(same, same, 2)


def _moved(picture, down, across):
    """A picture moved by places, with zeros where nothing comes from."""
    rows, columns, _ = picture.shape
    large = np.pad(picture, [[3, 3], [3, 3], [0, 0]])
    return large[3 + down : 3 + down + rows, 3 + across : 3 + across + columns]


def test_each_picture_is_moved_and_mirrored_on_its_own():
    found, classes = Augmentation(2, mirror=True)(PICTURES, CLASSES, tf.constant([3, 4]))
    np.testing.assert_array_equal(classes, CLASSES)
    assert found.dtype == tf.uint8
    seen = set()
    for before, after in zip(PICTURES, found.numpy(), strict=True):
        ways = {
            (down, across, step)
            for down in range(-2, 3)
            for across in range(-2, 3)
            for step in (1, -1)
            if np.array_equal(_moved(before[:, ::step], down, across), after)
        }
        assert len(ways) == 1
        seen |= ways
    assert len(seen) > 6
    assert {step for *_, step in seen} == {1, -1}


def test_one_seed_changes_pictures_in_one_way():
    change = Augmentation(1, mirror=True)
    one, same, other = (
        tf.function(change)(PICTURES, CLASSES, tf.constant(seed))[0].numpy()
        for seed in ([1, 2], [1, 2], [1, 3])
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    untouched, _ = Augmentation()(PICTURES, CLASSES, tf.constant([1, 2]))
    assert untouched is PICTURES


def test_it_is_the_same_whoever_reads_it():
    def read(**shard):
        settings = {"batch_size": 4, "seed": 1, "augment": Augmentation(2, True), **shard}
        return next(iter(training_examples((PICTURES, CLASSES), **settings)))[0].numpy()

    parts = [read(shard=shard, shards=2) for shard in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), read())
