"""The contents of a folder of checkpoints, and what is restored from it."""

import tensorflow as tf

from tfdeq.training.records.checkpoints import Checkpoints


def restored_step(folder):
    step = tf.Variable(0)
    found = Checkpoints(folder, step=step).restore()
    return int(step) if found else None


def saved_numbers(folder):
    return sorted(int(path.stem.removeprefix("ckpt-")) for path in folder.glob("ckpt-*.index"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
