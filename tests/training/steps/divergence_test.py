import math

import numpy as np
import pytest
import tensorflow as tf

from tfdeq.training.steps.divergence import Divergence


def noted(watch, *losses, apply=True):
    """(consecutive, high) after each of these losses."""
    counts = []
    for loss in losses:
        loss = tf.constant(loss, tf.float32)
        watch.note(loss, tf.math.is_finite(loss), tf.constant(apply))
        counts.append((int(watch.consecutive), int(watch.high)))
    return counts


def test_what_is_not_finite_goes_wrong():
    watch = Divergence(patience=3)
    assert noted(watch, 1.0, math.nan, math.inf, 2.0) == [(0, 0), (1, 0), (2, 0), (0, 0)]
    assert "NaN or Inf" in watch.described()


def test_a_loss_above_twice_the_guess_goes_wrong():
    watch = Divergence(patience=4, uniform_loss=5.5)
    # Worse than the guess after having been better, which may still recover.
    assert noted(watch, 5.6, 2.0, 10.9) == [(0, 0)] * 3
    assert noted(watch, 11.1, math.nan, 1e5) == [(1, 1), (2, 1), (3, 2)]
    assert "above 11 nats, or NaN or Inf (a uniform guess has 5.5 nats" in watch.described()
    assert noted(watch, 3.0) == [(0, 0)]


def test_first_losses_far_above_the_guess_do_not_as_long_as_they_fall():
    watch = Divergence(patience=3, uniform_loss=9.2)
    assert noted(watch, 90.0, 170.0, 60.0, 100.0, 40.0, 12.0, 18.0) == [(0, 0)] * 7
    # Now the limit is twice the lowest loss, 12.
    assert noted(watch, 23.0, 25.0) == [(0, 0), (1, 1)]


def test_without_a_guess_no_finite_loss_goes_wrong():
    watch = Divergence(patience=3)
    assert noted(watch, 1.0, 1e30) == [(0, 0)] * 2


def test_enough_in_a_row_are_not_forgotten():
    watch = Divergence(patience=2)
    noted(watch, 1.0, math.nan, math.nan)
    assert watch.has_diverged()
    noted(watch, 1.0, 1.0)
    assert watch.has_diverged()
    watch.reset()
    assert not watch.has_diverged()
    noted(watch, 1.0)
    assert not watch.has_diverged()


def test_a_step_that_is_no_step_counts_for_nothing():
    watch = Divergence(patience=3, uniform_loss=1.0)
    noted(watch, 0.5, math.nan)
    assert noted(watch, 0.01, math.nan, 9.0, apply=False) == [(1, 0)] * 3
    assert float(watch.lowest) == 0.5


@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_a_compiled_step(jit_compile):
    watch = Divergence(patience=9, uniform_loss=1.0)
    note = tf.function(watch.note, jit_compile=jit_compile)
    for loss in np.float32([0.5, 3.0, np.nan, 4.0]):
        note(tf.constant(loss), tf.constant(bool(np.isfinite(loss))), tf.constant(True))
    assert (int(watch.consecutive), int(watch.high)) == (3, 2)
    assert set(watch.saved) == {"consecutive", "high", "lowest_loss"}
