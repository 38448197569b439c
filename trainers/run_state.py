"""What a run keeps on disk: checkpoints by steps and time, the best one, and the way back to a good one."""

import math
import os
import time
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from trainers.agreement import Agreement
from trainers.checkpoints import Checkpoints


class RunState:
    """The checkpoints of a run, and the figures that they keep beside the model's.

    Args:
        folder: where checkpoints are written; the best one below it, in best/.
        read_from: where they are restored from; a worker that is not the chief reads the chief's.
        config: checkpoint_every, checkpoint_minutes, max_rollbacks.
        objects: name -> what a checkpoint holds (model, optimizer, variables).
        agreement: with the other workers; None: there are none.

    Attributes:
        step: steps made. seconds: that they took. rollbacks: returns to a checkpoint. best: the lowest
            held-out score.
    """

    def __init__(
        self,
        folder: str,
        read_from: str,
        config: Mapping[str, Any],
        objects: Mapping[str, Any],
        agreement: Agreement | None = None,
    ):
        self._config = config
        self._agreement = agreement or Agreement(tf.distribute.get_strategy())
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="seconds")
        self.rollbacks = tf.Variable(0, trainable=False, name="rollbacks")
        self.best = tf.Variable(math.inf, dtype=tf.float64, trainable=False, name="best")
        own = {
            "step": self.step,
            "seconds": self.seconds,
            "rollbacks": self.rollbacks,
            "best": self.best,
        }
        other = None if read_from == folder else read_from
        self._checkpoints = Checkpoints(folder, read_from=other, **own, **objects)
        self._best = Checkpoints(os.path.join(folder, "best"), keep=1, **own, **objects)
        self._saved_at = time.monotonic()

    def restore(self) -> bool:
        """Restores the newest checkpoint that can be read and returns whether there was one.

        The chief finds it; the other workers restore that one.

        Raises:
            ValueError: if there are checkpoints and none of them can be read, or not the chief's one.
        """
        if self._agreement.alone:
            return self._checkpoints.restore()
        found = self._agreement.is_chief and self._checkpoints.restore()
        step = int(self._agreement.on(float(self.step) if found else -1.0))
        if step >= 0 and not self._agreement.is_chief:
            self._checkpoints.restore(step)
        return step >= 0

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after a step, whatever the clock says."""
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
        """Writes the best checkpoint anew if the chief's held-out score is lower than all before."""
        # Workers round differently, and all of them have to save, or none.
        score = self._agreement.on(score)
        if score < float(self.best):
            self.best.assign(score)
            self.step.assign(step)
            self._best.save(step)

    def roll_back(self) -> bool:
        """Returns to the last checkpoint, counting it, and says whether there was one to return to.

        Raises:
            ValueError: if there are checkpoints and none of them can be read.
        """
        rollbacks = int(self.rollbacks) + 1
        if rollbacks > self._config["max_rollbacks"] or not self.restore():
            return False
        self.rollbacks.assign(rollbacks)
        return True
