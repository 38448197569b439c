"""Tests of tfdeq.data.puzzles.prefix_sums."""

import numpy as np
import pytest

from tfdeq.data.puzzles import prefix_sums


@pytest.mark.parametrize("size", [1, 5, 32, 64, 65, 512])
def test_sums_are_those_of_a_loop(size):
    bits, sums = prefix_sums.make(20, size, 5)
    for row, expected in zip(bits, sums, strict=True):
        total = 0
        for bit, parity in zip(row, expected, strict=True):
            total += bit
            assert parity == total % 2
    assert prefix_sums.check(bits, sums).all()


def test_bits_are_fair_and_independent():
    bits, _ = prefix_sums.make(4000, 70, 1)
    # 4,000 fair bits have a standard deviation of 0.008; this is five of them.
    np.testing.assert_allclose(bits.mean(axis=0), 0.5, atol=0.04)
    correlation = np.corrcoef(bits.T) - np.eye(70)
    assert np.abs(correlation).max() < 0.09  # 1 / √4000 = 0.016
