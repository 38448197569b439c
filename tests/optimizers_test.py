import math

import keras
import pytest

from trainers import optimizers


def test_schedule_warms_up_and_ends_at_five_percent():
    schedule = optimizers.learning_rate_schedule(2.0, train_steps=1000, warmup_steps=100)
    assert float(schedule(0)) == 0.0
    assert math.isclose(float(schedule(50)), 1.0, rel_tol=1e-6)
    assert math.isclose(float(schedule(100)), 2.0, rel_tol=1e-6)
    assert math.isclose(float(schedule(1000)), 0.1, rel_tol=1e-5)
    assert float(optimizers.learning_rate_schedule(2.0, 10, 0)(0)) == 2.0


def test_inverse_square_root_and_constant():
    schedule = optimizers.learning_rate_schedule(2.0, 1000, 100, "inverse_sqrt")
    values = [float(schedule(step)) for step in (0, 50, 100, 400, 900)]
    assert values == pytest.approx([0.0, 1.0, 2.0, 1.0, 2.0 / 3.0])
    schedule = optimizers.learning_rate_schedule(2.0, 1000, 100, "constant")
    assert [float(schedule(step)) for step in (50, 100, 999)] == pytest.approx([1.0, 2.0, 2.0])
    assert float(optimizers.learning_rate_schedule(2.0, 1000, 0, "constant")(5)) == 2.0


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", keras.optimizers.Adam), ("muon", keras.optimizers.Muon)]
)
def test_the_named_optimizer_follows_the_schedule(name, kind):
    schedule = optimizers.learning_rate_schedule(2.0, train_steps=1000, warmup_steps=100)
    config = {"optimizer": name, "ema": 0.9, "adam_rate_ratio": 1.0}
    optimizer = optimizers.make_optimizer(config, schedule, adam_layers=["readout"])
    assert isinstance(optimizer, kind)
    assert optimizer.use_ema
    assert optimizer.ema_momentum == 0.9
    # The training step clips the reduced gradient.
    assert optimizer.global_clipnorm is None
    variable = keras.Variable([[0.0, 0.0], [0.0, 0.0]])
    optimizer.build([variable])
    assert float(optimizer.learning_rate) == 0.0
    optimizer.iterations.assign(100)
    assert math.isclose(float(optimizer.learning_rate), 2.0, rel_tol=1e-6)
    schedule.scale.assign(0.25)
    assert math.isclose(float(optimizer.learning_rate), 0.5, rel_tol=1e-6)


def test_what_muon_leaves_to_adam_has_a_rate_of_its_own():
    # Adam's first step is the learning rate for each entry, whatever the gradient.
    config = {"optimizer": "muon", "ema": 0.0, "adam_rate_ratio": 4.0}
    optimizer = optimizers.make_optimizer(config, optimizers.ScalableSchedule(0.5))
    vector, matrix = keras.Variable([1.0, 1.0]), keras.Variable([[1.0, 0.0], [0.0, 1.0]])
    optimizer.build([vector, matrix])
    optimizer.apply([keras.ops.array([3.0, -2.0]), keras.ops.array([[3.0, 0.0], [0.0, 3.0]])])
    assert keras.ops.convert_to_numpy(vector).tolist() == pytest.approx([-1.0, 3.0], abs=1e-5)
    assert abs(float(matrix[0, 0]) - 1.0) < 0.5
