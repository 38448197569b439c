"""Checkpoints of a run, written atomically and restored from the newest complete one."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

# Any part of a checkpoint shows that it existed.
_NAME = re.compile(r"ckpt-([0-9]+)\.(?:index|data-.*)")
_STATE = "checkpoint"
_UNFINISHED = "unfinished"
_FINISHED = "finished"
_DAMAGE = (tf.errors.NotFoundError, tf.errors.DataLossError, tf.errors.OutOfRangeError)


class Checkpoints:
    """The last few checkpoints of a run, restored from the newest complete one.

    A checkpoint is written to a separate folder inside `folder`, with the state file that will refer to
    it. That folder is renamed when all of it is on the disk, and its files are moved into place; then
    older checkpoints are removed. If a process is killed between two of these moves, the next process
    makes the remaining ones.

    Args:
        folder: folder of the checkpoints.
        keep: number of newest checkpoints to keep.
        read_from: another folder to restore from, which is only read; None: `folder`. For a worker that
            starts from another worker's checkpoints and writes its own.
        objects: name -> trackable object (model, optimizer, variables).
    """

    def __init__(self, folder: str, keep: int = 3, read_from: str | None = None, **objects: Any):
        if keep < 1:
            raise ValueError(f"keep must be at least 1; received {keep}.")
        self._folder = folder
        self._keep = keep
        self._read_from = folder if read_from is None else read_from
        self._checkpoint = tf.train.Checkpoint(**objects)
        _finish_moves(folder)
        self._paths = _checkpoint_paths(folder)  # the newest is the last
        _repair_state(folder)

    def save(self, step: int) -> None:
        """Writes a checkpoint and removes the oldest one beyond `keep`.

        Raises:
            OSError: if it cannot be written, for example because the disk is full. Its partial files
                are removed, and the earlier checkpoints do not change.
        """
        path = os.path.join(self._folder, f"ckpt-{step}")
        others = [other for other in self._paths if other != path]
        kept = [*filter(_is_there, others), path][-self._keep :]
        unfinished, finished = self._own_folders()
        try:
            self._write(unfinished, path, kept)
            # From here on the checkpoint is complete, even if not all its files are in place.
            os.rename(unfinished, finished)
            self._paths = [*others, path]
            _move_into_place(finished, self._folder)
        except (OSError, tf.errors.OpError) as error:
            if not _is_there(path):
                _remove(path)
            raise OSError(self._failure(step, error)) from error
        finally:
            for folder in (unfinished, finished):
                shutil.rmtree(folder, ignore_errors=True)
        for other in others:
            if other not in kept:
                _remove(other)
        self._paths = kept

    def _own_folders(self) -> list[str]:
        return [os.path.join(self._folder, name) for name in (_UNFINISHED, _FINISHED)]

    def _write(self, unfinished: str, path: str, kept: Sequence[str]) -> None:
        for folder in self._own_folders():  # left by a run that was killed while writing
            shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(unfinished)
        self._checkpoint.save_counter.assign_add(1)  # Checkpoint.restore needs it
        self._checkpoint.write(os.path.join(unfinished, os.path.basename(path)))
        _write_state(os.path.join(unfinished, _STATE), kept)
        for name in os.listdir(unfinished):
            _flush(os.path.join(unfinished, name))

    def _failure(self, step: int, error: Exception) -> str:
        there = list(filter(_is_there, self._paths))
        last = (
            f"the last good one is {os.path.basename(there[-1])}" if there else "there is none yet"
        )
        return (
            f"The checkpoint of step {step} could not be written to {self._folder}: "
            f"{_first_line(error)}. The incomplete checkpoint was removed; {last}. Free some space or "
            "remove the cause, then run the same command again to resume from the last good "
            "checkpoint."
        )

    @property
    def latest_path(self) -> str | None:
        """Path of the newest checkpoint to restore, even if it cannot be read."""
        return next(iter(reversed(_checkpoint_paths(self._read_from))), None)

    def restore(self, before: int | None = None, words: str = "Resuming from") -> bool:
        """Restores the newest readable checkpoint and returns whether there was one.

        A single checkpoint without its index was never complete: a run was killed while writing its
        first one.

        Args:
            before: prefer those of earlier steps than this one. words: message to print before the
                path.

        Raises:
            ValueError: if there are checkpoints and none of them can be read.
        """
        path = self._first_good(self._restore, before)
        if path is not None:
            print(f"{words} {path}.", flush=True)
        return path is not None

    def newest(self, before: int | None = None) -> int | None:
        """Returns the step of the newest checkpoint whose values can all be read; None if there is none.

        Args:
            before: prefer those of earlier steps than this one.

        Raises:
            ValueError: as for `restore`.
        """

        def read(path: str) -> None:
            reader = tf.train.load_checkpoint(path)
            for name in reader.get_variable_to_shape_map():
                reader.get_tensor(name)

        path = self._first_good(read, before)
        return None if path is None else _number(path)

    def restore_step(self, step: int, words: str = "Resuming from") -> None:
        """Restores the checkpoint of a step.

        Args:
            words: message to print before the path.

        Raises:
            ValueError: if it cannot be read.
        """
        path = os.path.join(self._read_from, f"ckpt-{step}")
        try:
            self._restore(path)
        except Exception as error:  # a damaged file raises whatever the reader maps it to
            if isinstance(error, tf.errors.OpError) and not isinstance(error, _DAMAGE):
                raise  # another worker may be lost
            raise ValueError(
                f"The checkpoint {path} cannot be read: {_first_line(error)}. All workers need to see the "
                "same --workdir."
            ) from error
        print(f"{words} {path}.", flush=True)

    def _restore(self, path: str) -> None:
        status = self._checkpoint.restore(path).assert_existing_objects_matched()
        status.expect_partial()  # otherwise it warns about unused values

    def _first_good(self, attempt: Callable[[str], None], before: int | None) -> str | None:
        """Returns the newest checkpoint for which an attempt does not fail."""
        paths = list(reversed(_checkpoint_paths(self._read_from)))
        if len(paths) == 1 and not _is_there(paths[0]):
            print(
                f"{paths[0]} is incomplete, and there is no other checkpoint. The run starts from "
                "the beginning.",
                flush=True,
            )
            return None
        if before is not None:
            paths.sort(key=lambda path: _number(path) >= before)
        for path in paths:
            try:
                attempt(path)
            except Exception as error:  # a damaged file raises whatever the reader maps it to
                logging.warning("The checkpoint %s cannot be read: %s", path, _first_line(error))
                rest = "" if path == paths[-1] else "; trying the one before it"
                print(f"The checkpoint {path} cannot be read{rest}.", flush=True)
                self._remove_first(path)
                continue
            return path
        if paths:
            raise ValueError(
                f"None of the checkpoints {', '.join(paths)} can be read. Restore a copy of them, or "
                "delete their folder to start over."
            )
        return None

    def _remove_first(self, path: str) -> None:
        """Makes a damaged checkpoint the first to be removed, before any good one."""
        if path in self._paths:
            self._paths.remove(path)
            self._paths.insert(0, path)


def _checkpoint_paths(folder: str) -> list[str]:
    """Returns the checkpoints in a folder, lowest step first, independent of its state file."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    numbers = sorted({int(found[1]) for found in map(_NAME.fullmatch, names) if found})
    return [os.path.join(folder, f"ckpt-{number}") for number in numbers]


def _number(path: str) -> int:
    return int(path.rpartition("-")[2])


def _is_there(path: str) -> bool:
    return os.path.exists(f"{path}.index")  # moved into place after the data


def _remove(path: str) -> None:
    folder, checkpoint = os.path.split(path)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    for name in sorted(names, reverse=True):  # the index first, without which it does not count
        if _NAME.fullmatch(name) and name.startswith(f"{checkpoint}."):
            os.remove(os.path.join(folder, name))


def _move_into_place(finished: str, folder: str) -> None:
    # First the data, then the index, then the state file.
    for name in sorted(os.listdir(finished), key=lambda name: (name == _STATE, name)):
        os.replace(os.path.join(finished, name), os.path.join(folder, name))
    _flush(folder)
    os.rmdir(finished)


def _finish_moves(folder: str) -> None:
    """Moves into place a checkpoint that a killed process had written completely."""
    finished = os.path.join(folder, _FINISHED)
    if os.path.isdir(finished):
        try:
            _move_into_place(finished, folder)
        except OSError as error:  # the checkpoint in place is restored, or the previous one
            logging.warning("%s cannot be moved into place: %s", finished, error)


def _flush(path: str) -> None:
    """Flushes a file to the disk; some file systems report only here that they are full."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_state(path: str, checkpoints: Sequence[str]) -> None:
    """Writes the file that `tf.train.latest_checkpoint` reads."""
    names = [os.path.basename(checkpoint) for checkpoint in checkpoints]
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'model_checkpoint_path: "{names[-1]}"\n')
        file.writelines(f'all_model_checkpoint_paths: "{name}"\n' for name in names)


def _repair_state(folder: str) -> None:
    """Writes the state file again from the existing checkpoints, if it is missing or damaged."""
    paths = list(filter(_is_there, _checkpoint_paths(folder)))
    try:
        state = tf.train.get_checkpoint_state(folder)
    except Exception as error:  # a half-written state file raises whatever the parser maps it to
        logging.warning("The state file in %s cannot be read: %s", folder, _first_line(error))
        state = None
    if paths and state is None:
        print(f"{folder}/checkpoint is missing or damaged; it is written again.", flush=True)
        try:
            _write_state(os.path.join(folder, _STATE), paths)
        except OSError as error:  # restoring does not need it, and the next save writes it
            logging.warning("The state file in %s cannot be written: %s", folder, error)


def _first_line(error: Exception) -> str:
    # TensorFlow adds the name of its own function in braces at the front.
    text = re.sub(r"^\{\{.*?\}\} *", "", str(error).strip())
    return text.splitlines()[0] if text else type(error).__name__
