"""Batches that are computed in parts."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from tfdeq.data import TokenData
from tfdeq.training.schedule import StepSettings
from tfdeq.training.steps.accumulation import mean_over_parts
from tfdeq.training.steps.training_step import TrainingStep
from tfdeq.training.text import language_model
from trainers.language_model import CONFIGURATION_FLAGS


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_means_are_those_of_the_batch_and_rows_keep_their_memory(count, jit_compile):
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    memory = np.arange(8.0, dtype="float32")[:, None]

    def compute(index, rows, memory):
        mean = tf.reduce_mean(rows["x"], axis=0)
        return [mean, tf.cast(index, tf.float32)], (memory[0] + rows["x"][:, :1],)

    @tf.function(jit_compile=jit_compile)
    def run(x, memory):
        shapes = [tf.TensorSpec([3]), tf.TensorSpec([])]
        return mean_over_parts(compute, count, {"x": x}, (memory,), shapes)

    (mean, index), (after,) = run(tf.constant(x), tf.constant(memory))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-5, atol=1e-6)
    assert float(index) == np.mean(range(count))
    np.testing.assert_array_equal(after, memory + x[:, :1])


def _language_model_step(parts, jit_compile, **config):
    """Makes two steps of the language model's trainer, with its penalty, by plain gradient descent."""
    defaults = {name: flags.FLAGS[name].default for name in CONFIGURATION_FLAGS}
    config = {
        **defaults,
        "width": 16,
        "heads": 2,
        "feedforward": 32,
        "sequence_length": 8,
        "batch_size": 8,
        "recurrent_scale": 1.0,
        "evaluation_windows": 4,
        "jacobian_penalty": 5.0,
        "gradient_clip": 1e9,
        "accumulation_steps": parts,
        "jit_compile": jit_compile,
        **config,
    }
    tokens = np.random.default_rng(0).integers(0, 256, 2000).astype("uint8")
    data = TokenData(tokens, tokens, tokens, 256, "byte", None, "")
    keras.utils.set_random_seed(1)
    task = language_model.make_experiment(config, data).task
    step = TrainingStep(task, config, keras.optimizers.SGD(0.1), tf.distribute.get_strategy())
    batches = iter(task.batches(0, 0, 1))
    for _ in range(2):
        step.run(batches, [StepSettings(0, 6, 1.0)])
    return step.report(), task.model.get_weights()


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fraction", [0.125, 0.5])
@pytest.mark.slow
def test_with_the_jacobian_penalty_too_it_is_the_same_step(fraction, jit_compile):
    """Weights close to 0 are differences of larger terms, rounded in another order: hence 1e-5."""
    settings = {"jacobian_penalty_fraction": fraction}
    whole, weights = _language_model_step(1, jit_compile, **settings)
    for parts in (4,) if jit_compile else (2, 4):
        row, found = _language_model_step(parts, jit_compile, **settings)
        for name in ("loss", "gradient_norm"):
            assert row[name] == pytest.approx(whole[name], rel=1e-5)
        for one, other in zip(found, weights, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
