"""The state of a run on disk: checkpoints by steps and time, the best one, and restoring them."""

import math
import os
import time
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfdeq.training.devices.agreement import Agreement
from tfdeq.training.records.checkpoints import Checkpoints

# Values that the chief sends instead of a step.
_NOTHING, _UNREADABLE = -1.0, -2.0


class RunState:
    """The checkpoints of a run, and the figures that they store in addition to the model.

    Only the best checkpoint stores the evaluated model with its score and step. So a run that continues
    from any of its checkpoints still knows the best one.

    Args:
        folder: where checkpoints are written; the best one in its subfolder best/.
        read_from: where they are restored from; other workers read those of the chief.
        config: checkpoint_every, checkpoint_minutes, max_rollbacks.
        objects: name -> object to store in a checkpoint (model, optimizer, variables).
        evaluated: names of the objects that an evaluation depends on, which the best checkpoint stores.
        agreement: the agreement with other workers; None without other workers.
        lower_is_better: whether the lower of two scores is better.

    Attributes:
        step: number of steps made. seconds: their duration. rollbacks: number of returns to a
            checkpoint.
    """

    def __init__(
        self,
        folder: str,
        read_from: str,
        config: Mapping[str, Any],
        objects: Mapping[str, Any],
        evaluated: Mapping[str, Any],
        agreement: Agreement | None = None,
        lower_is_better: bool = True,
    ):
        self._config = config
        self._sign = 1.0 if lower_is_better else -1.0
        self._agreement = agreement or Agreement(tf.distribute.get_strategy())
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="seconds")
        self.rollbacks = tf.Variable(0, trainable=False, name="rollbacks")
        own = {"step": self.step, "seconds": self.seconds, "rollbacks": self.rollbacks}
        self._score = tf.Variable(math.inf, dtype=tf.float64, trainable=False, name="best")
        self._best_step = tf.Variable(0, dtype=tf.int64, trainable=False, name="best_step")
        best = {"best": self._score, "step": self._best_step}
        other = None if read_from == folder else read_from
        self._checkpoints = Checkpoints(folder, read_from=other, **own, **objects)
        self._best_folders = [os.path.join(name, "best") for name in (folder, read_from)]
        own, read_from = self._best_folders
        self._best = Checkpoints(
            own, keep=1, read_from=None if own == read_from else read_from, **best, **evaluated
        )
        self._best_figures = best
        self._saved_at = time.monotonic()

    @property
    def best(self) -> dict[str, float] | None:
        """The best validation score and its step; None if there is none yet."""
        signed = float(self._score)
        if signed == math.inf:
            return None
        return {"step": int(self._best_step), "score": self._sign * signed}

    def restore(self) -> bool:
        """Restores the newest checkpoint that can be read and returns whether there was one.

        The chief finds it, and all workers restore the same one.

        Raises:
            ValueError: if there are checkpoints and none of them can be read, or if this worker cannot
                read the chief's one.
        """
        own, read_from = self._best_folders
        figures = Checkpoints(own, read_from=read_from, **self._best_figures)
        try:
            figures.restore(words="The best so far is")
        except ValueError as error:
            print(f"{error} The search for the best weights starts again.", flush=True)
        return self._restore_together(self._checkpoints)

    def restore_best(self) -> bool:
        """Restores the best checkpoint; prints a message and returns False if it cannot be read."""
        try:
            return self._restore_together(self._best, words="The model is that of")
        except ValueError as error:
            print(f"{error} The last weights are kept.", flush=True)
            return False

    def _restore_together(self, checkpoints: Checkpoints, *how: Any, **settings: Any) -> bool:
        """Calls `Checkpoints.restore` in all workers, for the checkpoint that the chief could read."""
        if self._agreement.alone:
            return checkpoints.restore(*how, **settings)
        found, refusal = None, None
        if self._agreement.is_chief:
            try:
                found = checkpoints.newest(*how)
            except ValueError as error:
                refusal = error
        told = _UNREADABLE if refusal else _NOTHING if found is None else float(found)
        step = int(self._agreement.on(told))
        if step == _UNREADABLE:
            raise refusal or ValueError("The first worker can read none of its checkpoints.")
        if step >= 0:
            checkpoints.restore_step(step, **settings)
        return step >= 0

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after a step, independent of time."""
        last = step == self._config["train_steps"]
        return step % self._config["checkpoint_every"] == 0 or last

    def is_late(self) -> bool:
        """Whether checkpoint_minutes have passed since the last one, by this process's clock."""
        minutes = self._config["checkpoint_minutes"]
        return bool(minutes and time.monotonic() - self._saved_at >= 60.0 * minutes)

    def save(self, step: int) -> None:
        """Writes a checkpoint."""
        self.step.assign(step)
        self._checkpoints.save(step)
        self._saved_at = time.monotonic()

    def save_if_best(self, step: int, score: float) -> None:
        """Replaces the best checkpoint if no earlier validation score was better.

        Of equal scores the last one counts: if all answers are correct, the score cannot rise, but
        later weights have been trained longer.

        Call it while the model has the evaluated weights. The chief's score counts, because workers
        round differently, and either all of them or none must save.
        """
        signed = self._sign * score  # stored in the checkpoint: lower for better models
        lowest = self._agreement.on(signed if signed <= float(self._score) else math.inf)
        if lowest < math.inf:
            self._score.assign(lowest)
            self._best_step.assign(step)
            self._best.save(step)

    def roll_back(self, before: int | None = None) -> bool:
        """Returns to the last checkpoint and counts this; returns whether there was one.

        The best checkpoint remains the best, even if its step is undone.

        Args:
            before: see `Checkpoints.restore`.

        Raises:
            ValueError: if there are checkpoints and none of them can be read.
        """
        rollbacks = int(self.rollbacks) + 1
        if rollbacks > self._config["max_rollbacks"] or not self._restore_together(
            self._checkpoints, before
        ):
            return False
        self.rollbacks.assign(rollbacks)
        return True

    def what_is_there(self) -> str:
        """Returns a sentence about the checkpoints of a run that cannot continue."""
        newest = self._checkpoints.latest_path
        if newest is None:
            return "No checkpoint had been written before."
        sentence = f"The last checkpoint from before is kept: {newest}."
        if self.best is None:
            return sentence
        return f"{sentence} The best, of step {self.best['step']}, is in {self._best_folders[0]}."
