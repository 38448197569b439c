"""Tests of tfdeq.steadiness.residual_watch; `callbacks_test.py` tests it in training."""

import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import DenseCell
from tfdeq.solution import Solution
from tfdeq.steadiness.residual_watch import ResidualWatch


def _watch(action="penalty", **settings):
    return ResidualWatch(tfdeq.DEQLayer(DenseCell(2), name="depth", **settings), action, 0.1)


def _solve(watch, *residuals):
    count = tf.fill([len(residuals)], 3)
    watch.layer._forward_metrics(
        Solution(tf.zeros([len(residuals), 1]), tf.constant(residuals), count, count)
    )
    watch.collect()


def test_window_is_the_mean_over_what_came_since_the_last_one():
    watch = _watch()
    assert watch.close_window() is None
    assert watch.residual is None
    _solve(watch, 0.2, 0.4)
    for metric in watch.layer._forward_metrics.all():
        metric.reset_state()
    watch.metrics_were_reset()
    _solve(watch, 0.6)
    watch.close_window()
    assert watch.residual == pytest.approx(0.4)
    _solve(watch, 0.06)
    watch.close_window()
    assert watch.residual == pytest.approx(0.06)


def test_samples_without_a_residual_count_as_one():
    watch = _watch()
    _solve(watch, tf.float32.max, 0.0)
    watch.close_window()
    assert watch.residual == pytest.approx(0.5)


def test_levels_go_up_to_the_end_and_down_again():
    watch = _watch(jacobian_penalty=0.5)
    said = []
    for _ in range(6):
        _solve(watch, 0.2)
        said.append(watch.close_window())
    assert said[0] == "depth: residual 0.2, Jacobian penalty 1"
    assert [line is not None for line in said] == [True] * 4 + [False] * 2
    assert watch.high == 2
    _solve(watch, 0.07)  # between half the threshold and the threshold
    assert watch.close_window() is None
    assert watch.high == 0
    _solve(watch, 0.01)
    assert watch.close_window() == "depth: residual 0.01, Jacobian penalty 4"
    watch.release()
    assert watch.layer.training_control.penalty_scale.value == 1.0


def test_automatic_penalties_and_budgets_are_named():
    watch = _watch(jacobian_penalty="auto")
    watch.raise_level()
    assert watch.setting == "automatic penalty 2 times its own"
    watch = _watch("budget")
    watch.raise_level()
    assert watch.setting == "budget 1.25 times its own"
    assert not _watch("none").raise_level()


def test_what_was_taken_back_too_early_stays_longer_the_next_time():
    watch = _watch(jacobian_penalty=0.5)
    levels = []
    for residual in (0.2, 0.01, 0.2, 0.01, 0.01, 0.2, 0.01, 0.01, 0.01, 0.01):
        _solve(watch, residual)
        watch.close_window()
        levels.append(watch.level)
    assert levels == [1, 0, 1, 1, 0, 1, 1, 1, 1, 0]
