"""TensorBoard shows each step once, even for a run that resumes or returns to a checkpoint."""

import collections

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.trainer_cases import CONFIG, make_trainer
from tfdeq.training.records import event_files


def events(folder):
    """Returns how often each (tag, step) occurs in the files of a folder."""
    found = collections.Counter()
    for path in sorted(folder.iterdir()):
        if path.name.startswith("events"):
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                found.update((value.tag, event.step) for value in event.summary.value)
    return found


def write(folder, steps, tag="loss"):
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        for step in steps:
            tf.summary.scalar(tag, 0.5 * step, step=step)
    writer.close()


def shown(folder, tag="loss"):
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return [event.step for event in accumulator.Tensors(tag)]


def test_steps_that_come_again_are_dropped(tmp_path):
    write(tmp_path, range(1, 8))
    event_files.rewind(str(tmp_path), 4)
    assert events(tmp_path) == {("loss", step): 1 for step in range(1, 5)}
    write(tmp_path, range(5, 9))
    assert shown(tmp_path) == [*range(1, 9)]
    assert set(events(tmp_path).values()) == {1}


def test_what_is_kept_stays_to_the_byte(tmp_path):
    write(tmp_path, range(1, 4))
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    event_files.rewind(str(tmp_path), 3)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    event_files.rewind(str(tmp_path), 2)
    assert before.startswith(path.read_bytes())


def test_a_record_that_was_cut_off_is_dropped(tmp_path):
    write(tmp_path, range(1, 8))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(tf.errors.DataLossError):
        events(tmp_path)
    event_files.rewind(str(tmp_path), 100)
    assert events(tmp_path) == {("loss", step): 1 for step in range(1, 7)}


def test_pictures_are_drawn_again(tmp_path):
    writer = tf.summary.create_file_writer(str(tmp_path))
    with writer.as_default(step=3):
        tf.summary.image("quality", np.zeros([1, 2, 2, 3], "uint8"))
        tf.summary.histogram("samples/steps", [1.0, 2.0])
    writer.close()
    (tmp_path / "plugins").mkdir()
    event_files.drop_pictures(str(tmp_path))
    assert events(tmp_path) == {("samples/steps", 3): 1}
    event_files.drop_pictures(str(tmp_path / "missing"))


def test_a_run_that_is_taken_back_and_begun_again_shows_each_step_once(tmp_path):
    """The run is ended by an error after a return to a checkpoint, and started again."""
    config = {**CONFIG, "max_rollbacks": 1, "log_every": 1, "evaluate_every": 2}
    trainer, _ = make_trainer(tmp_path, nan_from=9, nan_once=True, config=config)

    def fail(step, model):
        if step == 7:
            raise KeyError

    with pytest.raises(KeyError):
        make_trainer(tmp_path, config=config, at_step=fail)[0].train()
    assert trainer.train()["rollbacks"] == 1
    trainer.progress.writer.close()
    found = events(tmp_path / "tensorboard")
    assert set(found.values()) == {1}
    steps = {tag: [s for t, s in found if t == tag] for tag, _ in found}
    assert sorted(steps["train/loss"]) == [*range(1, 13)]
    assert sorted(steps["validation/error"]) == [*range(2, 13, 2)]
    assert shown(tmp_path / "tensorboard", "train/loss") == [*range(1, 13)]


def test_a_checkpoint_does_not_know_of_more_than_is_on_the_disk(tmp_path):
    """As after SIGKILL, the records in the writer's memory are lost."""
    seen = []

    def look(step, model):
        if step == 4:  # its checkpoint has just been written
            seen.append(events(tmp_path / "tensorboard"))

    make_trainer(tmp_path, config={**CONFIG, "log_every": 1}, at_step=look)[0].train()
    assert [step for tag, step in seen[0] if tag == "train/loss"] == [1, 2, 3, 4]
