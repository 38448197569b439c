"""Checkpoints of a run, restored from the newest one that is whole."""

import os
import re
from typing import Any

import tensorflow as tf
from absl import logging

# Any part of a checkpoint shows that it was there.
_NAME = re.compile(r"ckpt-([0-9]+)\.(?:index|data-.*)")


class Checkpoints:
    """The last few checkpoints of a run, restored from the newest one that is whole.

    Args:
        folder: where they lie.
        keep: how many of the newest stay.
        objects: name -> trackable object (model, optimizer, variables).
    """

    def __init__(self, folder: str, keep: int = 3, **objects: Any):
        self._folder = folder
        self._checkpoint = tf.train.Checkpoint(**objects)
        _repair_state(folder)
        self._manager = tf.train.CheckpointManager(self._checkpoint, folder, max_to_keep=keep)

    def save(self, step: int) -> None:
        self._manager.save(checkpoint_number=step)

    def restore(self) -> bool:
        """Restores the newest readable checkpoint and returns whether there was one.

        Raises:
            ValueError: if there are checkpoints and none of them can be read.
        """
        paths = list(reversed(_checkpoint_paths(self._folder)))
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


def _checkpoint_paths(folder: str) -> list[str]:
    """The checkpoints that lie in a folder, oldest first, whatever its state file says."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    numbers = sorted({int(found[1]) for found in map(_NAME.fullmatch, names) if found})
    return [os.path.join(folder, f"ckpt-{number}") for number in numbers]


def _repair_state(folder: str) -> None:
    """Writes the state file anew from the checkpoints that are there, if it is lost or broken."""
    paths = _checkpoint_paths(folder)
    try:
        state = tf.train.get_checkpoint_state(folder)
    except Exception as error:  # a half-written state file raises whatever the parser maps it to
        logging.warning("The state file in %s cannot be read: %s", folder, _first_line(error))
        state = None
    if paths and state is None:
        print(f"{folder}/checkpoint is lost or broken; it is written anew.", flush=True)
        tf.compat.v1.train.update_checkpoint_state(
            folder, paths[-1], all_model_checkpoint_paths=paths
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
