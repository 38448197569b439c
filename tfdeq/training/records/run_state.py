"""What a run keeps on disk: checkpoints by steps and time, the best one, and the way back to a good one."""

import math
import os
import time
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfdeq.training.devices.agreement import Agreement
from tfdeq.training.records.checkpoints import Checkpoints

# What the chief tells in place of a step.
_NOTHING, _UNREADABLE = -1.0, -2.0


class RunState:
    """The checkpoints of a run, and the figures that they keep beside the model's.

    The best checkpoint holds what was evaluated, and its score and step; no other place does. So a
    run that goes on, wherever its own checkpoints end, knows of the best what is there to be kept.

    Args:
        folder: where checkpoints are written; the best one below it, in best/.
        read_from: where they are restored from; a worker that is not the chief reads the chief's.
        config: checkpoint_every, checkpoint_minutes, max_rollbacks.
        objects: name -> what a checkpoint holds (model, optimizer, variables).
        evaluated: those among them that an evaluation depends on: what the best checkpoint holds.
        agreement: with the other workers; None: there are none.
        lower_is_better: of two scores, whether the lower one is the better.

    Attributes:
        step: steps made. seconds: that they took. rollbacks: returns to a checkpoint.
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
        """The best validation score and the step that it was reached at; None before there is one."""
        signed = float(self._score)
        if signed == math.inf:
            return None
        return {"step": int(self._best_step), "score": self._sign * signed}

    def restore(self) -> bool:
        """Restores the newest checkpoint that can be read and returns whether there was one.

        The chief finds it, and all workers restore that one.

        Raises:
            ValueError: if there are checkpoints and none of them can be read, or one that the chief could
                read cannot here.
        """
        own, read_from = self._best_folders
        figures = Checkpoints(own, read_from=read_from, **self._best_figures)
        try:
            figures.restore(words="The best so far is")
        except ValueError as error:
            print(f"{error} The search for the best weights starts again.", flush=True)
        return self._restore_together(self._checkpoints)

    def restore_best(self) -> bool:
        """Gives the model what the best checkpoint holds; False, saying so, if it cannot be read."""
        try:
            return self._restore_together(self._best, words="The model is that of")
        except ValueError as error:
            print(f"{error} The last weights are kept.", flush=True)
            return False

    def _restore_together(self, checkpoints: Checkpoints, *how: Any, **settings: Any) -> bool:
        """`Checkpoints.restore` by all workers, of what the chief could read."""
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
        """Writes the best checkpoint anew if no validation score before was better.

        Of equal scores the last one counts: a share of right answers that cannot rise any more says
        nothing about the weights after, which have been trained longer.

        To be called while the model has the weights that were evaluated. The chief's score counts: workers
        round differently, and all of them have to save, or none.
        """
        signed = self._sign * score  # what the checkpoint holds: lower for better models
        lowest = self._agreement.on(signed if signed <= float(self._score) else math.inf)
        if lowest < math.inf:
            self._score.assign(lowest)
            self._best_step.assign(step)
            self._best.save(step)

    def roll_back(self, before: int | None = None) -> bool:
        """Returns to the last checkpoint, counting it, and says whether there was one to return to.

        The best stays the best, also if it is of a step that is taken back.

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
        """What a run that cannot go on leaves, in a sentence."""
        newest = self._checkpoints.latest_path
        if newest is None:
            return "No checkpoint had been written before."
        sentence = f"The last checkpoint from before is kept: {newest}."
        if self.best is None:
            return sentence
        return f"{sentence} The best, of step {self.best['step']}, is in {self._best_folders[0]}."
