"""Optimisers and learning rates from the shared flags."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


class ScalableSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate times `scale`, a variable that starts at 1 and is lowered after divergence.

    Args:
        rate: a schedule or a number.
    """

    def __init__(self, rate: keras.optimizers.schedules.LearningRateSchedule | float):
        self._rate = rate
        self.scale = tf.Variable(1.0, trainable=False, name="learning_rate_scale")

    def __call__(self, step: Any) -> Any:
        rate = self._rate(step) if callable(self._rate) else self._rate
        return rate * self.scale

    def get_config(self) -> dict[str, Any]:
        return {"rate": self._rate}


class _TakesReducedGradients:
    """For optimisers whose gradients are already the same on all replicas, and are not summed again.

    The training step reduces first, because clipping uses the norm of the reduced gradient; Keras clips
    each replica's gradient and sums afterwards.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars


class ReducedAdam(_TakesReducedGradients, keras.optimizers.Adam):
    """Keras's Adam for gradients that are already reduced."""


class ReducedMuon(_TakesReducedGradients, keras.optimizers.Muon):
    """Keras's Muon for gradients that are already reduced."""


def make_optimizer(
    config: Mapping[str, Any],
    schedule: keras.optimizers.schedules.LearningRateSchedule,
    adam_layers: Sequence[str] = (),
) -> keras.optimizers.Optimizer:
    """Returns the optimiser of a configuration; the training step clips and reduces gradients.

    Args:
        config: the shared flags' values.
        schedule: schedule of the learning rate.
        adam_layers: parts of the names of output layers, whose matrices Adam trains instead of Muon,
            like vectors and embeddings.
    """
    average = {"use_ema": True, "ema_momentum": config["ema"]} if config["ema"] else {}
    if config["optimizer"] == "adam":
        return ReducedAdam(schedule, beta_1=0.9, beta_2=0.98, **average)
    return ReducedMuon(
        schedule,
        adam_beta_1=0.9,
        adam_beta_2=0.98,
        weight_decay=None,
        adam_weight_decay=None,
        adam_lr_ratio=config["adam_rate_ratio"],
        exclude_layers=list(adam_layers),
        **average,
    )


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A linear warm-up from peak / warmup_steps at the first step to peak, followed by a decay.

    Args:
        peak: the highest rate.
        warmup_steps: number of steps in which the rate rises; the next one is also at the peak.
        after: (steps since the warm-up, a scalar float32, 0 at the first step after it) -> share of the
            peak.
    """

    def __init__(self, peak: float, warmup_steps: int, after: Callable[[tf.Tensor], Any]):
        self._peak, self._warmup, self._after = peak, warmup_steps, after

    def __call__(self, step: Any) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        rising = (step + 1.0) / max(self._warmup, 1)
        falling = self._after(tf.maximum(step - self._warmup, 0.0))
        return self._peak * tf.where(step < self._warmup, rising, falling)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self._peak, "warmup_steps": self._warmup, "after": self._after}


def _cosine(steps: int, warmup: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Half a cosine from 1 to 0.05 at the run's end."""

    def share(since):
        done = tf.minimum(since / max(steps - warmup, 1), 1.0)
        return 0.05 + 0.95 * 0.5 * (1.0 + tf.cos(np.pi * done))

    return share


def _inverse_square_root(steps: int, warmup: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """sqrt(warmup / step), with steps counted from 1.

    Source: Vaswani et al., arXiv:1706.03762, section 5.3.
    """
    return lambda since: tf.minimum(tf.sqrt(max(warmup, 1) / (since + warmup + 1.0)), 1.0)


def _constant(steps: int, warmup: int) -> Callable[[tf.Tensor], tf.Tensor]:
    return tf.ones_like


# name -> (train_steps, warmup_steps) -> the share of the peak after the warm-up, see `WarmUp`
SCHEDULES = {"cosine": _cosine, "inverse_sqrt": _inverse_square_root, "constant": _constant}


def learning_rate_schedule(
    peak: float, train_steps: int, warmup_share: float, kind: str = "cosine"
) -> ScalableSchedule:
    """Returns a linear warm-up to peak over a share of the steps, followed by a schedule in SCHEDULES.

    The first step already has a rate above 0: peak divided by the steps of the warm-up.
    """
    warmup = round(warmup_share * train_steps)
    return ScalableSchedule(WarmUp(peak, warmup, SCHEDULES[kind](train_steps, warmup)))
