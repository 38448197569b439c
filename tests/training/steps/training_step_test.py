import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.cases import fast
from tests.support.trainer_cases import CONFIG
from tfdeq.training.schedule import StepSettings
from tfdeq.training.steps.training_step import TrainingStep
from tfdeq.training.task import Loss, Task

SETTINGS = StepSettings(explicit_steps=0, max_steps=4, penalty_share=0.5)


def batches(bad=()):
    """Yields batches of four; those of the given steps are NaN."""

    def batch(step):
        x = tf.random.stateless_normal([4, 3], tf.stack([step, 5]))
        y = tf.reduce_sum(x, axis=1, keepdims=True)
        wrong = tf.reduce_any(tf.equal(step, tf.constant(list(bad) or [-1], tf.int64)))
        return x, tf.where(wrong, np.nan, y)

    return iter(tf.data.Dataset.range(100).map(batch))


def make(steps_seen=None, **config):
    """A step of a small regression by plain gradient descent."""
    keras.utils.set_random_seed(1)
    layer = keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.5))
    model = keras.Sequential([keras.Input((3,)), layer])

    def loss(batch, settings, carried):
        # The settings enter the loss, to test that they arrive.
        factor = tf.cast(settings.max_steps, tf.float32) / 4 + settings.explicit_steps
        error = model(batch[0]) - batch[1]
        measures = {"bias": tf.reduce_mean(error), "largest": tf.reduce_max(abs(error))}
        return Loss(factor * tf.reduce_mean(tf.square(error)), carried, measures)

    task = Task(model, loss, None, None, None, 4, (), measures=["bias", "largest"])
    optimizer = keras.optimizers.SGD(0.1)
    config = {**CONFIG, "gradient_clip": 1e9, **config}
    return TrainingStep(task, config, optimizer, tf.distribute.get_strategy()), model


def by_hand(weights, x, y, factor, share):
    """The gradient of factor · mean (x w + b − y)² + share · ½ ‖w‖² in closed form."""
    w, b = weights
    error = x @ w + b - y
    return 2 * factor * x.T @ error / len(x) + share * w, 2 * factor * error.mean(0)


@pytest.mark.parametrize("jit_compile", fast([False], [False, True]))
def test_the_update_is_that_of_the_closed_form(jit_compile):
    step, model = make(jit_compile=jit_compile)
    expected = model.get_weights()
    settings = [SETTINGS, SETTINGS._replace(max_steps=2), SETTINGS._replace(explicit_steps=3)]
    data = batches()
    for one, (x, y) in zip(settings, batches(), strict=False):
        step.run(data, [one])
        factor = one.max_steps / 4 + one.explicit_steps
        gradients = by_hand(expected, x.numpy(), y.numpy(), factor, one.penalty_share)
        expected = [w - 0.1 * g for w, g in zip(expected, gradients, strict=True)]
        for weight, value in zip(model.get_weights(), expected, strict=True):
            np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_clipped_by_its_global_norm():
    step, model = make(gradient_clip=0.25)
    before = model.get_weights()
    step.run(batches(), [SETTINGS])
    moved = [(one - other) / 0.1 for one, other in zip(model.get_weights(), before, strict=True)]
    norm = np.sqrt(sum(np.sum(m**2) for m in moved))
    assert norm == pytest.approx(0.25, rel=1e-4)
    assert step.report()["gradient_norm"] > 0.25  # before it was clipped


@pytest.mark.parametrize("jit_compile", fast([False], [False, True]))
def test_several_steps_a_call_are_the_same_steps(jit_compile):
    settings = [SETTINGS._replace(max_steps=2 + i, penalty_share=0.1 * i) for i in range(6)]
    one, model = make(jit_compile=jit_compile)
    data = batches(bad=[2])
    for each in settings:
        one.run(data, [each])
    several, other = make(jit_compile=jit_compile)
    data = batches(bad=[2])
    assert several.run(data, settings[:4])
    assert several.run(data, settings[4:]) is False  # the same graph, for any number of steps
    for weight, expected in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
    rows = one.report(), several.report()
    del rows[0]["data_seconds"]  # calls of several steps fetch their batches inside
    assert rows[0] == rows[1]
    assert rows[0]["skipped_steps"] == 1


def test_a_timed_step_is_the_same_step_and_says_what_took_how_long():
    step, model = make()
    other, timed = make()
    ours, theirs = batches(), batches()
    assert other.run_timed(theirs, SETTINGS) is None  # compiled
    step.run(ours, [SETTINGS])
    found = other.run_timed(theirs, SETTINGS)
    step.run(ours, [SETTINGS])
    assert set(found) == {"data", "solve", "update"}
    assert all(0 <= seconds < 10 for seconds in found.values())
    assert found["solve"] > 0
    for weight, expected in zip(timed.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_steps_that_are_not_finite_are_counted_in_a_row_and_in_all():
    step, model = make()
    data = batches(bad=[1, 3, 4])
    seen = []
    for _ in range(6):
        before = model.get_weights()
        step.run(data, [SETTINGS])
        same = all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
        seen.append((int(step.divergence.consecutive), int(step.skipped), same))
    assert seen == [
        (0, 0, False),
        (1, 1, True),
        (0, 1, False),
        (1, 2, True),
        (2, 3, True),
        (0, 3, False),
    ]
    row = step.report()
    assert row["skipped_steps"] == 3
    assert np.isfinite(row["loss"])
    data = batches(bad=range(100))
    step.run(data, [SETTINGS])
    assert step.report()["loss"] is None


def test_float16_scales_the_loss_and_lowers_the_scale_when_a_step_overflows():
    step, model = make(precision="mixed_float16")
    plain, expected = make()
    data, others = batches(bad=[1]), batches(bad=[1])
    for _ in range(3):
        step.run(data, [SETTINGS])
        plain.run(others, [SETTINGS])
    assert step.report()["loss_scale"] == 2.0**14
    for weight, value in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2])
def test_measures_are_means_over_the_parts_and_the_steps_that_count(parts):
    step, model = make(accumulation_steps=parts)
    data, expected = batches(bad=[1]), []
    for x, y in [pair for index, pair in zip(range(3), batches(), strict=False) if index != 1]:
        expected.append([x.numpy(), y.numpy()])
    seen = []
    for index in range(3):
        if index != 1:
            x, y = expected[len(seen)]
            error = (model(x).numpy() - y).reshape(parts, -1)
            seen.append([error.mean(), np.abs(error).max(axis=1).mean()])
        step.run(data, [SETTINGS])
    row = step.report()
    means = np.mean(seen, axis=0)
    np.testing.assert_allclose([row["bias"], row["largest"]], means, rtol=1e-5, atol=1e-6)
    assert row["skipped_steps"] == 1
    assert step.report()["bias"] is None
