"""Tests of tfdeq.cells.monotone.coarse_grid: joining branches, and kernels from impulses."""

import numpy as np
import pytest
import tensorflow as tf

from tfdeq.cells.monotone import circular, coarse_grid


@pytest.mark.parametrize("channels", [(3,), (2, 3), (1, 3, 2)])
def test_separated_undoes_joined_and_lengths_stay(channels):
    random, last = np.random.default_rng(0), len(channels) - 1
    branches = [
        tf.constant(random.normal(size=(2, 3 * 2 ** (last - t), 2 ** (last - t), count)))
        for t, count in enumerate(channels)
    ]
    x = coarse_grid.joined(branches)
    assert x.shape == (2, 3, 1, sum(4 ** (last - t) * count for t, count in enumerate(channels)))
    again = coarse_grid.separated(x, channels)
    for one, other in zip(again, branches, strict=True):
        np.testing.assert_array_equal(one, other)
    squares = sum(np.sum(branch**2, axis=(1, 2, 3)) for branch in branches)
    np.testing.assert_allclose(np.sum(x**2, axis=(1, 2, 3)), squares)


def test_a_place_of_the_grid_is_a_cell_of_a_branch():
    fine = np.arange(2 * 4 * 6).reshape(1, 4, 6, 2).astype("float64")
    found = coarse_grid.to_channels(tf.constant(fine), 2).numpy()
    assert set(found[0, 1, 2]) == set(fine[0, 2:4, 4:6].ravel())


@pytest.mark.parametrize(("size", "reach"), [(1, 0), (3, 1), (3, 2), (5, 2)])
def test_the_kernel_of_a_convolution_is_its_own(size, reach):
    kernel = np.random.default_rng(0).normal(size=(size, size, 2, 3))
    found = coarse_grid.kernel_of(
        lambda x: circular.circular_convolution(x, kernel), 2, reach, tf.float64
    )
    margin = reach - size // 2
    expected = np.pad(kernel, [(margin, margin), (margin, margin), (0, 0), (0, 0)])
    np.testing.assert_array_equal(found, expected)


def test_a_strided_convolution_is_one_on_the_coarse_grid():
    random = np.random.default_rng(0)
    kernel, x = random.normal(size=(5, 5, 2, 3)), tf.constant(random.normal(size=(2, 6, 8, 2)))

    def strided(x):
        return circular.circular_convolution(coarse_grid.to_places(x, 2), kernel, stride=2)

    coarse = coarse_grid.kernel_of(strided, 8, 1, tf.float64)
    found = circular.circular_convolution(coarse_grid.to_channels(x, 2), coarse)
    expected = circular.circular_convolution(x, kernel, stride=2)
    np.testing.assert_allclose(found, expected, atol=1e-12)
