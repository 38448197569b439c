"""Tests of tfdeq.steadiness.scaled_schedule."""

import keras
import numpy as np
import pytest

from tfdeq.steadiness.scaled_schedule import RateHalving, ScaledSchedule


def _schedule():
    return keras.optimizers.schedules.ExponentialDecay(0.4, 1, 0.5)


def test_schedule_times_the_scale_survives_its_config():
    scaled = ScaledSchedule(_schedule(), 0.25)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(scaled))
    for schedule in (scaled, again):
        np.testing.assert_allclose(schedule(1), 0.05, rtol=1e-6)
    scaled.scale.value = 1.0
    np.testing.assert_allclose(scaled(1), 0.2, rtol=1e-6)


@pytest.mark.parametrize("within", [False, True])
def test_numbers_and_schedules_are_halved(within):
    for rate in (0.4, _schedule()):
        optimizer = keras.optimizers.SGD(rate)
        if within:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        halving = RateHalving(optimizer)
        assert halving.prepare() == (rate != 0.4)
        assert halving.halve(halving.rate)
        np.testing.assert_allclose(optimizer.learning_rate, 0.2, rtol=1e-6)


def test_a_function_of_the_users_stays():
    halving = RateHalving(keras.optimizers.SGD(lambda: 0.4))
    assert not halving.prepare()
    assert not halving.halve(0.4)


def test_a_schedule_that_was_not_scaled_is_given_back_and_used_again():
    schedule = _schedule()
    optimizer = keras.optimizers.SGD(schedule)
    halving = RateHalving(optimizer)
    assert halving.prepare()
    halving.finish()
    assert optimizer._learning_rate is schedule
    assert not halving.prepare()
    halving.halve(halving.rate)
    halving.finish()
    assert isinstance(optimizer._learning_rate, ScaledSchedule)
