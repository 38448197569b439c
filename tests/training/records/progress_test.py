import math
import time

import numpy as np
import tensorflow as tf

from tfdeq.training.records.progress import Clock, Progress


def test_the_clock_counts_what_runs_between_start_and_stop(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock()
    assert clock.seconds_per_step() is None
    clock.start(3)
    now[0] += 2.0
    clock.stop(5)
    now[0] += 100.0  # an evaluation
    clock.start(5)
    now[0] += 4.0
    clock.stop(6)
    assert clock.seconds_per_step() == 2.0
    assert clock.seconds_per_step() is None


def test_a_compilation_does_not_count(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock()
    clock.start(0)
    now[0] += 50.0
    clock.start(1)
    now[0] += 3.0
    clock.stop(2)
    assert clock.seconds_per_step() == 3.0


ROW = {"step": 2, "loss": 1.5, "skipped_steps": 0, "tokens_per_second": None, "residual": 0.1}


def test_rows_evaluations_and_histograms_reach_curves_and_tensorboard(tmp_path, capsys):
    progress = Progress(str(tmp_path), lambda row: {"twice": 2 * row["loss"]}, steps=4)
    with progress.bar(0):
        progress.row(ROW)
        progress.row({**ROW, "step": 3, "loss": None, "skipped_steps": 1})
        progress.evaluation(3, {"error": 0.5})
        progress.evaluation(4, {"error": 0.25, "other": 9.0})
        progress.histograms(4)("samples/steps", tf.constant([1.0, 2.0]))
    progress.writer.close()
    assert progress.last_finite_row() == ROW
    assert "step 4: validation error 0.25, other 9" in capsys.readouterr().out
    (events,) = (tmp_path / "tensorboard").iterdir()
    tags = {
        value.tag
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
    }
    assert {"train/loss", "train/twice", "train/residual", "validation/error"} <= tags
    assert "samples/steps" in tags
    assert "train/step" not in tags


def test_numbers_that_float32_cannot_hold_reach_tensorboard(tmp_path):
    progress = Progress(str(tmp_path), lambda row: {"perplexity": 1e300}, steps=4)
    with progress.bar(0):
        progress.row({**ROW, "loss": 690.8})
    progress.scalars(3, "validation", {"perplexity": math.inf})
    progress.writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    values = {
        (value.tag, event.step): float(tf.make_ndarray(value.tensor))
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
    }
    assert values["train/perplexity", 2] == values["validation/perplexity", 3] == math.inf
    assert values["train/loss", 2] == np.float32(690.8)


def test_what_comes_again_is_dropped_everywhere(tmp_path):
    progress = Progress(str(tmp_path), lambda row: {}, steps=4)
    with progress.bar(0):
        progress.row(ROW)
        progress.row({**ROW, "step": 3})
        progress.rewind(2)
        progress.row({**ROW, "step": 3})
    progress.writer.close()
    assert [row["step"] for row in progress.curves.rows] == [2, 3]
    steps = [
        event.step
        for path in (tmp_path / "tensorboard").iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        if any(value.tag == "train/loss" for value in event.summary.value)
    ]
    assert sorted(steps) == [2, 3]
