"""Checkpoints of a run, restored from the newest one that is whole."""

from typing import Any

import tensorflow as tf
from absl import logging


class Checkpoints:
    """The last few checkpoints of a run, restored from the newest one that is whole.

    Args:
        folder: where they lie.
        keep: how many of the newest stay.
        objects: name -> trackable object (model, optimizer, variables).
    """

    def __init__(self, folder: str, keep: int = 3, **objects: Any):
        self._checkpoint = tf.train.Checkpoint(**objects)
        self._manager = tf.train.CheckpointManager(self._checkpoint, folder, max_to_keep=keep)

    def save(self, step: int) -> None:
        self._manager.save(checkpoint_number=step)

    def restore(self) -> bool:
        """Restores the newest readable checkpoint and returns whether there was one.

        Raises:
            ValueError: if there are checkpoints and none of them can be read.
        """
        paths = list(reversed(self._manager.checkpoints))
        for path in paths:
            try:
                self._checkpoint.restore(path).assert_existing_objects_matched()
            except Exception as error:  # a damaged file raises whatever the reader maps it to
                logging.warning("The checkpoint %s cannot be read: %s", path, _first_line(error))
                print(
                    f"The checkpoint {path} cannot be read; trying the one before it.", flush=True
                )
                continue
            print(f"Resuming from {path}.", flush=True)
            return True
        if paths:
            raise ValueError(
                f"None of the checkpoints {', '.join(paths)} can be read. Restore a copy of them, or "
                "delete their folder to start over."
            )
        return False


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
