"""Tests of benchmarks.engine.compaction, at a small size that only shows that it works."""

import pytest

from benchmarks.engine import compaction


@pytest.mark.slow
def test_variants_agree_and_are_timed():
    result = compaction.measure(length=4, width=16, rounds=1)
    assert set(result) == {"samples leave", "samples stay", "two batches"}
    assert all(row["median_seconds"] > 0 for row in result.values())
    assert result["samples stay"]["ratio"] == 1.0
