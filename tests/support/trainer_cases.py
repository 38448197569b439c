"""A small regression that the training loop's tests train, and its configuration."""

import keras
import numpy as np
import tensorflow as tf

from tfdeq.training.steps.optimizers import ScalableSchedule
from tfdeq.training.task import Loss, Score, Task
from tfdeq.training.trainer import Trainer

CONFIG = {
    "depth": 0,
    "shallow_share": 0.5,
    "shallow_steps": 2,
    "jacobian_penalty_end": 0.25,
    "training_max_steps": 4,
    "sampled_depth": 0,
    "max_steps": 6,
    "train_steps": 12,
    "log_every": 3,
    "evaluate_every": 6,
    "checkpoint_every": 4,
    "checkpoint_minutes": 0,
    "divergence_patience": 3,
    "accumulation_steps": 1,
    "max_rollbacks": 0,
    "jit_compile": False,
    "gradient_clip": 1.0,
    "batch_size": 4,
    "precision": "float32",
    "ema": 0.0,
    "keep": "last",
    "seed": 0,
    "equilibrium_watch": "none",
    "watch_residual": 0.1,
    "steps_per_call": 1,
    "profile_step": 0,
    "inspect_every": 0,
}


def make_task(
    nan_from=None,
    nan_once=False,
    seen=None,
    at_step=None,
    layers=(),
    evaluate=None,
    uniform_loss=None,
    lower_is_better=True,
):
    """Returns the task of a small regression.

    at_step: (step, model) -> None, called before each batch. layers: the layers before the last one.
    evaluate: (model) -> its validation error; None: some numbers. uniform_loss, lower_is_better: see Task
    and its score.
    """
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1)])
    visited = set()
    scores = iter([0.5, 0.3, 0.4, 0.2, 0.6])

    def batches(start_step, shard, shards):
        for step in range(start_step, 10**6):
            if seen is not None:
                seen.append(step)
            if at_step is not None:
                at_step(step, model)
            x = np.random.default_rng(step).normal(size=(4, 2)).astype("float32")
            y = x.sum(axis=1, keepdims=True)
            again = nan_once and step in visited
            visited.add(step)
            if nan_from is not None and step >= nan_from and not again:
                y = y * np.nan
            yield tf.constant(x), tf.constant(y)

    def loss(batch, settings, carried):
        error = model(batch[0], training=settings.training) - batch[1]
        return Loss(tf.reduce_mean(tf.square(error)), carried)

    return Task(
        model=model,
        loss=loss,
        batches=batches,
        evaluate=lambda: {"error": evaluate(model) if evaluate else next(scores)},
        display=lambda row: {"loss": row["loss"]},
        items_per_step=4,
        equilibria=(),
        spectral_radius=lambda batch: tf.constant([0.7]),
        uniform_loss=uniform_loss,
        score=Score("error", lower_is_better=lower_is_better),
    )


def make_trainer(folder, config=CONFIG, **settings):
    """Returns a trainer of `make_task`, and its model."""
    task = make_task(**settings)
    schedule = ScalableSchedule(0.1)
    average = {"use_ema": True, "ema_momentum": config["ema"]} if config["ema"] else {}
    optimizer = keras.optimizers.Adam(schedule, **average)
    trainer = Trainer(task, config, str(folder), optimizer, schedule.scale)
    return trainer, task.model


def weights_of(model):
    return [weight.numpy() for weight in model.weights]
