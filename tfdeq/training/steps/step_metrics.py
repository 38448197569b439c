"""The means in a row of the curves, over the training steps since the last row."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


class StepMetrics:
    """Loss, gradient norm, a task's measures and the number of skipped steps.

    Args:
        measures: names of the task's measures.
    """

    def __init__(self, measures: Sequence[str] = ()):
        self._means = [
            keras.metrics.Mean(name=name) for name in ("loss", "gradient_norm", *measures)
        ]
        self._skipped = keras.metrics.Sum(name="skipped")

    @property
    def variables(self) -> list[Any]:
        """The variables for a checkpoint; measures are last, because older checkpoints lack them."""
        metrics = [*self._means[:2], self._skipped, *self._means[2:]]
        return [variable for metric in metrics for variable in metric.variables]

    def update(self, values: Sequence[tf.Tensor], finite: tf.Tensor, apply: tf.Tensor) -> None:
        """On a replica: takes a step's loss, gradient norm and measures, all scalars.

        Args:
            finite: scalar bool; a step that is not finite is skipped, and not included in the means.
            apply: scalar bool; whether the step counts.
        """
        counts = tf.cast(finite & apply, tf.float32)
        for mean, value in zip(self._means, values, strict=True):
            mean.update_state(tf.where(finite, value, 0.0), counts)
        self._skipped.update_state(tf.cast(~finite & apply, tf.float32))

    def report(self, replicas: int) -> dict[str, Any]:
        """Returns the means and the number of skipped steps since the last report."""
        # If all steps were skipped, there is no mean.
        known = float(keras.ops.convert_to_numpy(self._means[0].count))
        row = {mean.name: float(mean.result()) if known else None for mean in self._means}
        row["skipped_steps"] = round(float(self._skipped.result()) / replicas)
        for metric in (*self._means, self._skipped):
            metric.reset_state()
        return row
