"""Inspection of an equilibrium during training: the solve of each sample, and the spectral radius."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdeq import SolveScope
from tfdeq.training.gradient_cosine import gradient_cosine
from tfdeq.training.task import CallSettings, Task


class Inspection:
    """Solves a batch forward and backward, without training on it, and records each sample's figures.

    Args:
        task: has the model, loss and spectral radius.
        jit_compile: whether XLA compiles it. Outside XLA, if much memory is in use, TensorFlow may turn
            the sums in a solve's loops into temporary variables, and then fail in the second call with
            "AlreadyExistsError: … tmp_var".
        compare_gradient: whether to compare the gradient with that of an accurate solve, which takes
            many times as many evaluations as a training step.
    """

    def __init__(self, task: Task, jit_compile: bool, compare_gradient: bool = False):
        self._task = task
        self._compare_gradient = compare_gradient
        self._compiled = tf.function(self._solve, autograph=False, jit_compile=jit_compile)

    def __call__(self, batch: Any, max_steps: int) -> dict[str, tf.Tensor]:
        """Returns steps, residual, backward_steps, backward_residual [B] and spectral_radius [b].

        With compare_gradient also the scalars of `gradient_cosine`.

        The model is in evaluation mode: there is no dropout, no penalty, and no random number is drawn,
        so inspections do not change a run.
        """
        return self._compiled(batch, tf.constant(max_steps))

    def _solve(self, batch: Any, max_steps: tf.Tensor) -> dict[str, tf.Tensor]:
        model = self._task.model
        with SolveScope(compaction=False) as scope, tf.GradientTape() as tape:
            loss = self._loss(batch, max_steps)
        tape.gradient(loss, model.trainable_variables)
        found = {}
        for prefix, solutions in (("", scope.solutions), ("backward_", scope.backward_solutions)):
            known = list(solutions.values())
            if known:
                found[f"{prefix}steps"] = tf.concat([one.steps for one in known], axis=0)
                found[f"{prefix}residual"] = tf.concat([one.residual for one in known], axis=0)
        if self._task.spectral_radius is not None:
            found["spectral_radius"] = self._task.spectral_radius(batch)
        if self._compare_gradient:
            weights = model.trainable_variables
            found |= gradient_cosine(self._loss, self._task.equilibria, weights, batch, max_steps)
        return found

    def _loss(self, batch: Any, max_steps: tf.Tensor) -> tf.Tensor:
        carried = ()
        if self._task.carried is not None:
            # As at the beginning of a text, because the carried state of training belongs to other
            # rows.
            carried = self._task.carried(tf.nest.flatten(batch)[0].shape[0])
        return self._task.loss(batch, CallSettings(0, max_steps, training=False), carried).value


def write_histograms(found: dict[str, tf.Tensor], write: Callable[..., Any]) -> None:
    """Writes the results of an inspection by write(name, values); residuals as decimal logarithms."""
    for name, values in found.items():
        if not values.shape.rank:  # not one value per sample
            continue
        values = tf.cast(values, tf.float64)
        if name.endswith("residual"):
            name = f"log10_{name}"
            values = tf.math.log(tf.maximum(values, 1e-30)) / tf.math.log(
                tf.constant(10.0, tf.float64)
            )
        write(f"samples/{name}", values)
