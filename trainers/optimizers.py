"""Optimisers and learning rates, from the shared flags."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf


class ScalableSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate times `scale`, a variable that starts at 1: what a run that diverged lowers.

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
    """Of an optimiser whose gradients are the same on all replicas already: they are not summed again.

    The training step reduces first, since the norm to clip by is that of the reduced gradient; Keras
    clips each replica's own and sums afterwards.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars


class ReducedAdam(_TakesReducedGradients, keras.optimizers.Adam):
    """Keras's Adam for gradients that are reduced already."""


class ReducedMuon(_TakesReducedGradients, keras.optimizers.Muon):
    """Keras's Muon for gradients that are reduced already."""


def make_optimizer(
    config: Mapping[str, Any],
    schedule: keras.optimizers.schedules.LearningRateSchedule,
    adam_layers: Sequence[str] = (),
) -> keras.optimizers.Optimizer:
    """Returns the optimiser of a configuration; it neither clips nor reduces: the training step does.

    Args:
        config: the shared flags' values.
        schedule: of the learning rate.
        adam_layers: parts of the names of layers whose matrices Muon leaves to Adam, as it does
            vectors and embeddings: those that map to the output.
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


class InverseSquareRoot(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0 to peak at warmup_steps, then peak · sqrt(warmup_steps / step).

    Source: Vaswani et al., arXiv:1706.03762, section 5.3.
    """

    def __init__(self, peak: float, warmup_steps: int):
        self._peak, self._warmup = peak, max(warmup_steps, 1)

    def __call__(self, step: Any) -> tf.Tensor:
        share = tf.cast(step, tf.float32) / self._warmup
        return self._peak * tf.minimum(share, tf.math.rsqrt(tf.maximum(share, 1.0)))

    def get_config(self) -> dict[str, Any]:
        return {"peak": self._peak, "warmup_steps": self._warmup}


def _cosine(peak: float, train_steps: int, warmup: int) -> Any:
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else peak,
        decay_steps=train_steps - warmup,
        alpha=0.05,
        warmup_target=peak if warmup else None,
        warmup_steps=warmup,
    )


def _constant(peak: float, train_steps: int, warmup: int) -> Any:
    if not warmup:
        return peak
    # A cosine that falls by nothing.
    return keras.optimizers.schedules.CosineDecay(
        0.0, train_steps - warmup, alpha=1.0, warmup_target=peak, warmup_steps=warmup
    )


# name -> (peak, train_steps, warmup_steps) -> the rate at each step
SCHEDULES = {
    "cosine": _cosine,
    "inverse_sqrt": lambda peak, train_steps, warmup: InverseSquareRoot(peak, warmup),
    "constant": _constant,
}


def learning_rate_schedule(
    peak: float, train_steps: int, warmup_steps: int, kind: str = "cosine"
) -> ScalableSchedule:
    """Linear warm-up from 0 to peak, then what kind, a name in SCHEDULES, says."""
    warmup = min(warmup_steps, max(train_steps - 1, 0))
    return ScalableSchedule(SCHEDULES[kind](peak, train_steps, warmup))
