"""A step that is not finite: none of its layers' changes remain."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import NoisyCell, fast
from tests.support.trainer_cases import CONFIG
from tfdeq.training.schedule import StepSettings
from tfdeq.training.steps.training_step import TrainingStep
from tfdeq.training.task import Loss, Task

SETTINGS = StepSettings(explicit_steps=0, max_steps=6, penalty_share=1.0)
GOOD = np.random.default_rng(0).normal(size=(4, 4, 3)).astype("float32")
BAD = GOOD[0].copy()
BAD[3, 0] = np.nan  # one number of the last row
COMPILED = [False, pytest.param(True, marks=pytest.mark.slow)]


class Counting(keras.layers.Layer):
    """A layer with its own metric, a statistic, and a constant that is not finite."""

    def __init__(self):
        super().__init__()
        self.mean = keras.metrics.Mean(name="mean")

    def build(self, _):
        self.largest = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.mask = self.add_weight(
            shape=(2,), initializer=keras.initializers.Constant(-np.inf), trainable=False
        )

    def call(self, x):
        self.mean.update_state(x)
        # The square of 1e30 overflows, which does not affect the loss.
        self.largest.assign(keras.ops.max(keras.ops.square(x)))
        return x


def make(compute=lambda model, x: model(x, training=True), optimizer=None, **config):
    """Returns a step of a model with everything that layers write besides gradients."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3,))
    x = keras.layers.BatchNormalization()(Counting()(inputs))
    x = keras.layers.Dropout(0.2)(x)
    layer = tfdeq.DEQLayer(
        NoisyCell(3), jacobian_penalty=0.1, training_max_steps=(2, 6), solver="anderson"
    )
    model = keras.Model(inputs, layer(x))

    def loss(batch, settings, carried):
        return Loss(tf.reduce_mean(tf.square(compute(model, batch))))

    task = Task(model, loss, None, None, None, 4, (layer,))
    optimizer = optimizer or keras.optimizers.Adam(0.01, use_ema=True)
    step = TrainingStep(task, {**CONFIG, **config}, optimizer, tf.distribute.get_strategy())
    return step, [*model.variables, *model.metrics_variables, *optimizer.variables]


def run(step, *data, together=False):
    batches = iter([tf.constant(batch) for batch in data])
    if together:
        batches = iter(tf.data.Dataset.from_tensor_slices(np.stack(data)))
    for settings in [[SETTINGS] * len(data)] if together else [[SETTINGS]] * len(data):
        step.run(batches, settings)


def check_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)


@pytest.mark.parametrize("jit_compile", COMPILED)
@pytest.mark.parametrize(
    "config", fast([{}], [{}, {"accumulation_steps": 2}, {"steps_per_call": 3}]), ids=str
)
@pytest.mark.slow
def test_the_run_is_the_one_that_never_saw_the_batch(config, jit_compile):
    """Moving statistics, generators, metrics and averages are equal bit for bit."""
    together = "steps_per_call" in config
    step, found = make(jit_compile=jit_compile, **config)
    run(step, GOOD[0], BAD, GOOD[1], together=together)
    other, expected = make(jit_compile=jit_compile, **config)
    run(other, GOOD[0], GOOD[1], together=together)
    assert int(step.skipped) == 1
    check_same(found, expected)
    row, known = step.report(), other.report()
    assert row["skipped_steps"] == 1
    assert (row["loss"], row["gradient_norm"]) == (known["loss"], known["gradient_norm"])


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_enough():
    def compute(model, x):
        # At 0 the square root is 0 and its derivative infinite.
        root = tf.sqrt(tf.maximum(x[0, 0] - 5.0, 0.0) * model.trainable_variables[0][0])
        return model(x, training=True) + root

    step, found = make(compute)
    before = [tf.identity(variable.value) for variable in found]
    batch = GOOD[0].copy()
    batch[0, 0] = 5.0
    run(step, batch)
    assert int(step.skipped) == 1
    for variable, value in zip(found, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)
    assert step.report()["gradient_norm"] is None


@pytest.mark.parametrize("jit_compile", COMPILED)
@pytest.mark.slow
def test_a_statistic_that_overflows_skips_the_step_though_the_loss_is_finite(jit_compile):
    step, found = make(jit_compile=jit_compile)
    large = GOOD[0].copy()
    large[0, 0] = 1e30
    run(step, GOOD[0], large, GOOD[1])
    other, expected = make(jit_compile=jit_compile)
    run(other, GOOD[0], GOOD[1])
    assert int(step.skipped) == 1
    assert int(other.skipped) == 0  # for all the −∞ of the mask
    check_same(found, expected)


@pytest.mark.slow
def test_only_the_loss_scale_of_float16_changes():
    step, found = make(precision="mixed_float16")
    before = [tf.identity(variable.value) for variable in found]
    run(step, BAD)
    assert step.report()["loss_scale"] == 2.0**14
    for variable, value in zip(found, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)


@pytest.mark.parametrize("bad", fast([True], [False, True]))
@pytest.mark.slow
def test_a_timed_step_leaves_what_a_step_leaves(bad):
    second = BAD if bad else GOOD[1]
    step, found = make()
    run(step, GOOD[0])
    assert set(step.run_timed(iter([tf.constant(second)]), SETTINGS)) == {"data", "solve", "update"}
    other, expected = make()
    run(other, GOOD[0], second)
    assert int(step.skipped) == int(other.skipped) == bad
    check_same(found, expected)
    row, known = step.report(), other.report()
    row.pop("data_seconds"), known.pop("data_seconds")
    assert row == known


# In a separate process, because logical devices must be created before the first operation.
_TWO_DEVICES = """
import keras, numpy as np, tensorflow as tf
from tfdeq.training.devices import strategies
strategy = strategies.make_strategy("mirrored", logical_devices=2)
from tests.training.steps.skipped_step_test import CONFIG, NoisyCell, SETTINGS
from tfdeq import DEQLayer
from tfdeq.training.task import Loss, Task
from tfdeq.training.steps.training_step import TrainingStep
with strategy.scope():
    inputs = keras.Input((3,))
    layer = DEQLayer(NoisyCell(3))
    model = keras.Model(inputs, layer(keras.layers.BatchNormalization()(inputs)))
    optimizer = keras.optimizers.Adam(0.01)
def loss(batch, settings, carried):
    return Loss(tf.reduce_mean(tf.square(model(batch[0], training=settings.training))))
config = {**CONFIG, "batch_size": 8}
step = TrainingStep(Task(model, loss, None, None, None, 8, (layer,)), config, optimizer, strategy)
data = np.random.default_rng(0).normal(size=(4, 8, 3)).astype("float32")
data[1, 7, 0] = np.nan  # of the second replica
dataset = tf.data.Dataset.from_tensor_slices((data,))
batches = strategies.distribute(strategy, lambda shard, shards: dataset)
def state():
    kept = [*model.variables, *model.metrics_variables, *optimizer.variables]
    return [part.numpy().tolist() for v in kept for part in strategy.experimental_local_results(v.value)]
seen = [state()]
for timed in (False, False, True):
    (step.run_timed(batches, SETTINGS) if timed else step.run(batches, [SETTINGS]))
    seen.append(state())
parts = strategy.experimental_local_results(model.layers[1].moving_mean.value)
print(step.skipped.numpy(), seen[0] != seen[1], seen[1] == seen[2], seen[2] != seen[3],
      np.isfinite(parts).all(), not np.array_equal(*parts))
"""


@pytest.mark.slow
def test_each_replica_puts_back_its_own():
    """One of two replicas has a NaN; the statistics of the other, which differ, are also restored."""
    result = subprocess.run(
        [sys.executable, "-c", _TWO_DEVICES],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.stdout.split() == ["1", *["True"] * 5], result.stderr
