"""Tests of benchmarks.engine.compaction, at a small size that only shows that it works."""

from benchmarks.engine import compaction


def test_variants_agree_and_are_timed():
    result = compaction.measure(length=4, width=16, rounds=1)
    assert set(result) == {"samples leave", "samples stay", "two batches"}
    assert all(row["median_seconds"] > 0 for row in result.values())
    assert result["samples stay"]["ratio"] == 1.0
