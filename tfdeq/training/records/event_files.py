"""TensorBoard's files of a run: what belongs to steps that come again is taken out of them."""

import os
from collections.abc import Callable, Iterator

import tensorflow as tf

_PREFIX = "events.out.tfevents."

Event = tf.compat.v1.Event


def rewind(folder: str, step: int) -> None:
    """Drops what was written about the steps after one, and every picture.

    Pictures are drawn when a run is finished: one that goes on draws them again. A record that was cut
    off when its writer was killed is dropped too. Each file is replaced whole or not at all, so that
    an interruption here leaves something that the next start puts right. (The record by which a
    restart is told to TensorBoard, SessionLog, takes back no summaries of TensorFlow 2.)

    Args:
        folder: with the files; others in it, and folders, are left alone. It may be missing.
        step: the last one that is kept.
    """

    def stays(event):
        return event.step <= step and not _is_picture(event)

    _keep(folder, stays)


def drop_pictures(folder: str) -> None:
    """Drops the pictures alone, before they are drawn anew."""
    _keep(folder, lambda event: not _is_picture(event))


def _keep(folder: str, stays: Callable[[Event], bool]) -> None:
    """Keeps in each file the events that stay."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    for name in names:
        if not name.startswith(_PREFIX):
            continue
        path = os.path.join(folder, name)
        records, whole = _records(path)
        kept = [record for record in records if stays(Event.FromString(record))]
        if len(kept) < len(records) or not whole:
            _write(path, kept)


def _records(path: str) -> tuple[list[bytes], bool]:
    """The records of a file up to the first that cannot be read, and whether that is all of it."""
    records: list[bytes] = []
    try:
        for record in _read(path):
            records.append(record)
    except tf.errors.DataLossError:
        return records, False
    return records, True


def _read(path: str) -> Iterator[bytes]:
    for record in tf.data.TFRecordDataset(path):
        yield record.numpy()


def _write(path: str, records: list[bytes]) -> None:
    """Writes a file whole or not at all."""
    # Not a name that TensorBoard would read, should it be left behind.
    temporary = os.path.join(os.path.dirname(path), "unfinished")
    with tf.io.TFRecordWriter(temporary) as writer:
        for record in records:
            writer.write(record)
    os.replace(temporary, path)


def _is_picture(event: Event) -> bool:
    return any(value.metadata.plugin_data.plugin_name == "images" for value in event.summary.value)
