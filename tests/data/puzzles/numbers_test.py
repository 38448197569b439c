"""Tests of tfdeq.data.puzzles.numbers."""

import numpy as np

from tfdeq.data.puzzles.numbers import below, mixed, raw_numbers, row_keys, uniform


def test_streams_differ_by_name_seed_and_more():
    first = [
        int(raw_numbers(*what).random_raw(1)[0])
        for what in (("a", 0), ("b", 0), ("a", 1), ("a", -1), ("a", 0, 5), ("a", 0, 6))
    ]
    assert len(set(first)) == 6
    # NumPy guarantees this for PCG64 and SeedSequence.
    assert first[0] == 18226099172448235072


def test_integers_and_reals_cover_their_ranges():
    raw = raw_numbers("test", 0).random_raw(6000)
    drawn = below(raw, 6)
    assert drawn.dtype == np.int64
    np.testing.assert_allclose(np.bincount(drawn, minlength=6), 1000, atol=150)  # 5 deviations
    np.testing.assert_array_equal(below(raw[:3], np.array([1, 1, 1])), 0)
    reals = uniform(raw)
    assert reals.min() >= 0
    assert reals.max() < 1
    np.testing.assert_allclose(reals.mean(), 0.5, atol=0.02)


def test_keys_are_of_the_content():
    rows = np.arange(12).reshape(3, 2, 2)
    keys = row_keys(rows)
    assert len(set(keys.tolist())) == 3
    np.testing.assert_array_equal(row_keys(rows.astype(np.int8)[::-1])[::-1], keys)
    assert len(set(mixed(np.arange(1000)).tolist())) == 1000
    assert row_keys(rows[:0]).shape == (0,)
