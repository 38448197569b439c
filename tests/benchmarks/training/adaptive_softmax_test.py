"""Tests of benchmarks.training.adaptive_softmax, at a small size that only shows that it works."""

import numpy as np
import pytest

from benchmarks.training import adaptive_softmax


@pytest.mark.slow
def test_every_step_is_timed():
    table = adaptive_softmax.measure(64, rows=4, width=16, rounds=1, memory=False)
    assert [(row["mode"], row["softmax"]) for row in table] == [
        ("graph", "whole"),
        ("graph", "adaptive"),
        ("XLA", "whole"),
        ("XLA", "adaptive"),
    ]
    assert all(row["median_seconds"] > 0 for row in table)
    assert all(row["ratio"] == 1.0 for row in table if row["softmax"] == "whole")


def test_steps_of_both_modes_agree():
    batch = adaptive_softmax.make_batch(64, 8, 16, seed=1)
    for kind in ("whole", "adaptive"):
        step = adaptive_softmax.make_step(kind, "graph", 64, 16)
        loss, gradients = step(*batch)
        assert np.isfinite(loss)
        assert len(gradients) == (2 if kind == "whole" else 7)


def test_targets_follow_zipf():
    _, targets = adaptive_softmax.make_batch(1000, 20_000, 1, seed=0)
    counts = np.bincount(targets, minlength=1000)
    assert counts[0] == pytest.approx(2 * counts[1], rel=0.1)
    assert counts[:10].sum() == pytest.approx(10 * counts[:10].mean())
    assert counts.max() == counts[0]


@pytest.mark.slow
def test_a_process_that_fails_says_why():
    with pytest.raises(ValueError, match=r"(?s)failed:.*divisible"):
        adaptive_softmax.peak_of_a_process("adaptive", "graph", 64, 4, width=24)
