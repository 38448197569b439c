"""Blocks of places: their windows, sides and order."""

import numpy as np
import pytest
import tensorflow as tf

from tfdeq.numerics.block_grid import BlockGrid


def _grid(sizes, block=3, halo=2, batch=2):
    return BlockGrid(len(sizes), tf.constant([batch, *sizes, 1]), block, halo)


@pytest.mark.parametrize("sizes", [(7,), (7, 5)])
def test_windows_are_what_stands_around_a_block(sizes):
    """Compared with a loop over the blocks, with zeros beyond the border."""
    values = np.random.default_rng(0).normal(size=(2, *sizes, 1)).astype("float32")
    grid = _grid(sizes)
    padded = grid.padded(tf.constant(values))
    blocks = [-(-size // 3) for size in sizes]
    every = tf.range(2 * int(np.prod(blocks)), dtype=tf.int64)
    windows = grid.as_places(tf.gather(padded, grid.windows(every))).numpy()
    wide = np.pad(values, [(0, 0), *[(2, 5)] * len(sizes), (0, 0)])
    for number, place in enumerate(np.ndindex(2, *blocks)):
        own = tuple(slice(3 * at, 3 * at + 7) for at in place[1:])
        np.testing.assert_array_equal(windows[number], wide[place[0]][own])
    np.testing.assert_array_equal(grid.unpadded(padded), values)
    inner = tuple(slice(2, 5) for _ in sizes)
    expected = windows[(slice(None), *inner)].reshape(len(windows), -1, 1)
    np.testing.assert_array_equal(grid.interior(tf.constant(windows)), expected)


@pytest.mark.parametrize("sizes", [(7,), (7, 5)])
def test_lengths_by_block(sizes):
    values = np.random.default_rng(0).normal(size=(2, *sizes, 1)).astype("float32")
    found = _grid(sizes).by_block(tf.constant(values)).numpy()
    blocks = [-(-size // 3) for size in sizes]
    expected = [
        np.linalg.norm(values[place[0]][tuple(slice(3 * at, 3 * at + 3) for at in place[1:])])
        for place in np.ndindex(2, *blocks)
    ]
    np.testing.assert_allclose(found.reshape(-1), expected, rtol=1e-6)


def test_a_side_that_moved_wakes_the_block_beside_it():
    grid = _grid((9, 9), batch=1)  # three by three blocks
    change = np.zeros((1, 9, 1), "float32")
    change[0, 0] = 1.0  # the corner of the block in the middle
    moved = grid.moved(tf.constant(change)) > 0
    woken = grid.woken(tf.constant([4], tf.int64), moved, tf.constant([1, 9])).numpy()[0]
    # The block itself, and those that see this corner: above, next to, and diagonal to it. With a
    # margin of 2 of 3 places, the corner is not in the zones of the other sides.
    assert np.flatnonzero(woken).tolist() == [0, 1, 3, 4]


def test_those_that_wait_longest_have_their_turn():
    grid = _grid((12,), batch=1)
    active = tf.constant([[True, True, False, True]])
    turn = grid.oldest_around(active, tf.zeros([1, 4], tf.int64))
    assert turn.numpy().tolist() == [[True, False, False, True]]
    turn = grid.oldest_around(active, tf.constant([[5, 2, 0, 9]], tf.int64))
    assert turn.numpy().tolist() == [[False, True, False, True]]
