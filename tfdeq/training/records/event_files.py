"""TensorBoard's files of a run: removes the records of steps that will be repeated."""

import os
from collections.abc import Callable, Iterator

import tensorflow as tf

_PREFIX = "events.out.tfevents."

Event = tf.compat.v1.Event


def rewind(folder: str, step: int) -> None:
    """Removes the records of all later steps, and every picture.

    Pictures are drawn when a run is finished, and a run that continues draws them again. A record that
    was truncated when its writer was killed is removed too. Each file is replaced atomically, so the
    next start can repair an interruption here. (TensorBoard's own record of a restart, SessionLog, does
    not remove summaries of TensorFlow 2.)

    Args:
        folder: folder of the files; other files and folders in it are not changed. It may be missing.
        step: the last step to keep.
    """

    def stays(event):
        return event.step <= step and not _is_picture(event)

    _keep(folder, stays)


def drop_pictures(folder: str) -> None:
    """Removes only the pictures, before they are drawn again."""
    _keep(folder, lambda event: not _is_picture(event))


def _keep(folder: str, stays: Callable[[Event], bool]) -> None:
    """Removes all other events from each file."""
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
    """Returns a file's records up to the first unreadable one, and whether these are all."""
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
    """Writes a file atomically."""
    # A name that TensorBoard does not read, in case the file is left behind.
    temporary = os.path.join(os.path.dirname(path), "unfinished")
    with tf.io.TFRecordWriter(temporary) as writer:
        for record in records:
            writer.write(record)
    os.replace(temporary, path)


def _is_picture(event: Event) -> bool:
    return any(value.metadata.plugin_data.plugin_name == "images" for value in event.summary.value)
