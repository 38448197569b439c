import math

import keras
import pytest

from tfdeq.training.steps import optimizers


def test_schedule_warms_up_and_ends_at_five_percent():
    schedule = optimizers.learning_rate_schedule(2.0, train_steps=1000, warmup_share=0.1)
    # The first step already has an effect.
    assert [float(schedule(step)) for step in (0, 49, 99, 100)] == pytest.approx([0.02, 1, 2, 2])
    assert float(schedule(550)) == pytest.approx(2.0 * (0.05 + 0.95 / 2), rel=1e-5)
    assert math.isclose(float(schedule(1000)), 0.1, rel_tol=1e-5)
    assert float(optimizers.learning_rate_schedule(2.0, 10, 0.0)(0)) == 2.0


@pytest.mark.parametrize("kind", sorted(optimizers.SCHEDULES))
def test_a_short_run_has_a_short_warm_up(kind):
    schedule = optimizers.learning_rate_schedule(2.0, 100, 0.05, kind)
    rates = [float(schedule(step)) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert max(rates) == pytest.approx(2.0)
    assert all(rate > 0.0 for rate in rates)
    whole = optimizers.learning_rate_schedule(2.0, 100, 1.0, kind)
    assert float(whole(99)) == pytest.approx(2.0)


def test_inverse_square_root_and_constant():
    schedule = optimizers.learning_rate_schedule(2.0, 1000, 0.1, "inverse_sqrt")
    values = [float(schedule(step)) for step in (0, 49, 99, 399, 899)]
    assert values == pytest.approx([0.02, 1.0, 2.0, 1.0, 2.0 / 3.0])
    schedule = optimizers.learning_rate_schedule(2.0, 1000, 0.1, "constant")
    assert [float(schedule(step)) for step in (49, 99, 999)] == pytest.approx([1.0, 2.0, 2.0])
    assert float(optimizers.learning_rate_schedule(2.0, 1000, 0.0, "constant")(5)) == 2.0


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", keras.optimizers.Adam), ("muon", keras.optimizers.Muon)]
)
def test_the_named_optimizer_follows_the_schedule(name, kind):
    schedule = optimizers.learning_rate_schedule(2.0, train_steps=1000, warmup_share=0.1)
    config = {"optimizer": name, "ema": 0.9, "adam_rate_ratio": 1.0}
    optimizer = optimizers.make_optimizer(config, schedule, adam_layers=["readout"])
    assert isinstance(optimizer, kind)
    assert optimizer.use_ema
    assert optimizer.ema_momentum == 0.9
    # The training step clips the reduced gradient.
    assert optimizer.global_clipnorm is None
    variable = keras.Variable([[0.0, 0.0], [0.0, 0.0]])
    optimizer.build([variable])
    assert float(optimizer.learning_rate) == pytest.approx(0.02)
    optimizer.iterations.assign(100)
    assert math.isclose(float(optimizer.learning_rate), 2.0, rel_tol=1e-6)
    schedule.scale.assign(0.25)
    assert math.isclose(float(optimizer.learning_rate), 0.5, rel_tol=1e-6)


def test_what_muon_leaves_to_adam_has_a_rate_of_its_own():
    # Adam's first step is the learning rate for each entry, for any gradient.
    config = {"optimizer": "muon", "ema": 0.0, "adam_rate_ratio": 4.0}
    optimizer = optimizers.make_optimizer(config, optimizers.ScalableSchedule(0.5))
    vector, matrix = keras.Variable([1.0, 1.0]), keras.Variable([[1.0, 0.0], [0.0, 1.0]])
    optimizer.build([vector, matrix])
    optimizer.apply([keras.ops.array([3.0, -2.0]), keras.ops.array([[3.0, 0.0], [0.0, 3.0]])])
    assert keras.ops.convert_to_numpy(vector).tolist() == pytest.approx([-1.0, 3.0], abs=1e-5)
    assert abs(float(matrix[0, 0]) - 1.0) < 0.5
