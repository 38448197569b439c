import os
import pathlib
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.checkpoint_cases import contents, restored_step, saved_numbers
from tests.support.ending_cases import in_a_process
from tfdeq.training.records.checkpoints import Checkpoints


def save_steps(folder, steps, keep=3):
    step = tf.Variable(0)
    checkpoints = Checkpoints(folder, keep=keep, step=step)
    for value in steps:
        step.assign(value)
        checkpoints.save(value)


def test_nothing_to_restore(tmp_path):
    assert restored_step(str(tmp_path / "none")) is None


def test_restores_the_newest_and_keeps_the_last_few(tmp_path):
    save_steps(str(tmp_path), [1, 2, 3, 4], keep=2)
    assert restored_step(str(tmp_path)) == 4
    assert sorted(name for name in os.listdir(tmp_path) if name.endswith(".index")) == [
        "ckpt-3.index",
        "ckpt-4.index",
    ]


@pytest.mark.parametrize("damage", ["truncate", "garbage", "missing"])
@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
def test_a_corrupt_checkpoint_falls_back_to_the_one_before_and_says_so(
    tmp_path, capsys, part, damage
):
    save_steps(str(tmp_path), [1, 2])
    path = tmp_path / f"ckpt-2.{part}"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "garbage":
        path.write_bytes(b"\xff" * path.stat().st_size)
    else:
        path.unlink()
    assert restored_step(str(tmp_path)) == 1
    printed = capsys.readouterr().out
    assert "ckpt-2 cannot be read" in printed
    assert "Resuming from" in printed
    assert "ckpt-1" in printed


@pytest.mark.parametrize("content", [None, b"", b"model_checkpoint_path: "])
def test_a_lost_or_broken_state_file_loses_no_checkpoint(tmp_path, capsys, content):
    save_steps(str(tmp_path), [1, 2])
    state = tmp_path / "checkpoint"
    if content is None:
        state.unlink()
    else:
        state.write_bytes(content)
    assert restored_step(str(tmp_path)) == 2
    assert "written again" in capsys.readouterr().out
    save_steps(str(tmp_path), [3])
    assert restored_step(str(tmp_path)) == 3


def test_no_readable_checkpoint_is_an_error(tmp_path):
    save_steps(str(tmp_path), [1, 2])
    for name in ("ckpt-1.index", "ckpt-2.index"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="None of the checkpoints"):
        restored_step(str(tmp_path))


def test_the_damaged_one_is_removed_before_the_good_ones(tmp_path):
    save_steps(str(tmp_path), [1, 2])
    (tmp_path / "ckpt-2.index").write_bytes(b"")
    step = tf.Variable(0)
    checkpoints = Checkpoints(str(tmp_path), keep=2, step=step)
    checkpoints.restore()
    checkpoints.save(3)
    assert saved_numbers(tmp_path) == [1, 3]


def test_takes_over_from_the_manager_of_tensorflow_and_stays_readable_by_it(tmp_path):
    step = tf.Variable(0)
    checkpoint = tf.train.Checkpoint(step=step)
    manager = tf.train.CheckpointManager(checkpoint, tmp_path, max_to_keep=3)
    for value in (1, 2, 3):
        manager.save(step.assign(value))
    assert restored_step(str(tmp_path)) == 3
    save_steps(str(tmp_path), [4, 5], keep=2)
    assert saved_numbers(tmp_path) == [4, 5]
    latest = tf.train.latest_checkpoint(tmp_path)
    assert latest == str(tmp_path / "ckpt-5")
    checkpoint.restore(latest).assert_consumed()
    assert int(step) == 5


def test_a_step_that_is_saved_again_is_the_newest(tmp_path):
    step = tf.Variable(0)
    checkpoints = Checkpoints(str(tmp_path), keep=2, step=step)
    for number, value in ((3, 3), (1, 1), (3, 30), (2, 2)):
        step.assign(value)
        checkpoints.save(number)
    assert saved_numbers(tmp_path) == [2, 3]
    assert restored_step(str(tmp_path)) == 30


def test_none_to_keep_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1; received 0"):
        Checkpoints(str(tmp_path), keep=0)


def test_what_a_killed_run_left_is_removed_by_the_next_save(tmp_path):
    save_steps(str(tmp_path), [1])
    (tmp_path / "unfinished" / "ckpt-2_temp").mkdir(parents=True)
    (tmp_path / "unfinished" / "ckpt-2.data-00000-of-00001").write_bytes(b"half")
    (tmp_path / "ckpt-2.data-00000-of-00001").write_bytes(b"killed before the index came")
    assert restored_step(str(tmp_path)) == 1
    save_steps(str(tmp_path), [3])
    assert sorted(contents(tmp_path)) == [
        "checkpoint",
        "ckpt-1.data-00000-of-00001",
        "ckpt-1.index",
        "ckpt-3.data-00000-of-00001",
        "ckpt-3.index",
    ]


def some_objects(seed):
    """Returns a model and its optimizer, whose values all depend on the seed."""
    random = np.random.default_rng(seed)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(8), keras.layers.Dense(2)])
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    step = tf.Variable(0, dtype=tf.int64)
    for variable in [*model.weights, *optimizer.variables, step]:
        variable.assign(tf.cast(random.uniform(1, 1000, variable.shape), variable.dtype))
    return {"model": model, "optimizer": optimizer, "step": step}


def values(objects):
    variables = [*objects["model"].weights, *objects["optimizer"].variables, objects["step"]]
    return [np.array(variable) for variable in variables]


def equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_flipped_bit_never_gives_wrong_values(tmp_path, capsys):
    saved = {}
    for number in (1, 2):
        objects = some_objects(number)
        saved[number] = values(objects)
        Checkpoints(str(tmp_path), **objects).save(number)
    objects = some_objects(3)
    checkpoints = Checkpoints(str(tmp_path), **objects)
    random = np.random.default_rng(0)
    counts = {1: 0, 2: 0}
    for part in ("index", "data-00000-of-00001"):
        path = tmp_path / f"ckpt-2.{part}"
        whole = path.read_bytes()
        # The last bytes of an index are padding; if they are damaged, the values of 2 are read.
        for position in np.linspace(0, len(whole) - 1, 40).astype(int):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << random.integers(8)
            path.write_bytes(flipped)
            assert checkpoints.restore()
            fell_back = f"{tmp_path}/ckpt-2 cannot be read" in capsys.readouterr().out
            number = 1 if fell_back else 2
            counts[number] += 1
            assert equal(values(objects), saved[number]), (part, position)
        path.write_bytes(whole)
    assert counts[1] >= 70
    assert counts[2] >= 1
    assert checkpoints.restore()
    assert equal(values(objects), saved[2])


@pytest.mark.parametrize("state", ["whole", "lost", "broken"])
def test_another_folder_is_only_read(tmp_path, state):
    chief, worker = tmp_path / "chief", tmp_path / "worker"
    save_steps(str(chief), [1, 2, 3])
    (chief / "ckpt-3.index").write_bytes(b"")
    if state == "lost":
        (chief / "checkpoint").unlink()
    elif state == "broken":
        (chief / "checkpoint").write_bytes(b"model_checkpoint_path: ")
    (chief / "unfinished").mkdir()  # of the chief, which is writing now
    before = contents(chief)
    step = tf.Variable(0)
    checkpoints = Checkpoints(str(worker), keep=1, read_from=str(chief), step=step)
    assert checkpoints.restore()
    assert int(step) == 2
    for value in (4, 5):
        step.assign(value)
        checkpoints.save(value)
    assert saved_numbers(worker) == [5]
    assert checkpoints.restore()
    assert int(step) == 2  # the chief's, even if the worker has newer ones
    assert contents(chief) == before
    assert (chief / "unfinished").is_dir()
    nothing = Checkpoints(str(worker), read_from=str(tmp_path / "none"), step=step)
    assert not nothing.restore()
    assert not (tmp_path / "none").exists()


def test_a_data_file_alone_was_never_whole(tmp_path, capsys):
    (tmp_path / "ckpt-2.data-00000-of-00001").write_bytes(b"killed before the index came")
    assert restored_step(str(tmp_path)) is None
    assert "ckpt-2 is incomplete, and there is no other checkpoint" in capsys.readouterr().out
    save_steps(str(tmp_path), [4])
    assert [path.name for path in tmp_path.glob("ckpt-*.data*")] == ["ckpt-4.data-00000-of-00001"]


def test_several_without_their_index_are_an_error(tmp_path):
    save_steps(str(tmp_path), [1, 2])
    for name in ("ckpt-1.index", "ckpt-2.index"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="None of the checkpoints"):
        restored_step(str(tmp_path))
    assert len(list(tmp_path.glob("ckpt-*.data*"))) == 2


def test_the_newest_that_can_be_read_and_one_step_alone(tmp_path, capsys):
    save_steps(str(tmp_path), [1, 2, 3])
    step = tf.Variable(0)
    checkpoints = Checkpoints(str(tmp_path), step=step)
    assert checkpoints.newest() == 3
    data = tmp_path / "ckpt-3.data-00000-of-00001"
    data.write_bytes(b"\xff" * data.stat().st_size)
    (tmp_path / "ckpt-2.index").unlink()
    assert checkpoints.newest() == 1
    assert "ckpt-3 cannot be read; trying the one before it" in capsys.readouterr().out
    assert int(step) == 0
    checkpoints.restore_step(1)
    assert int(step) == 1
    for damaged in (2, 3, 4):
        with pytest.raises(ValueError, match=f"ckpt-{damaged} cannot be read: .*same --workdir"):
            checkpoints.restore_step(damaged)
    assert Checkpoints(str(tmp_path / "none"), step=step).newest() is None


def _save_until(folder, call, steps=(1, 2, 3, 3)):
    """Saves steps and kills itself at a call that renames or removes; checkpoint 3 already exists."""
    count = [0]

    def wrap(original):
        def function(*args, **kwargs):
            count[0] += 1
            if count[0] == call:  # after a call is the same as before the next one
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return function

    for name in ("replace", "rename", "remove", "rmdir"):
        setattr(os, name, wrap(getattr(os, name)))
    step = tf.Variable(0)
    checkpoints = Checkpoints(folder, keep=2, step=step)
    for number, value in enumerate(steps):
        with open(os.path.join(folder, "..", "done"), "w") as file:
            file.write(str(number))
        step.assign(value)
        checkpoints.save(value)


def _kill_at_every_call(folder):
    """In a separate process that has not used TensorFlow, because it is forked for every call."""
    folder = pathlib.Path(folder)
    for call in range(1, 100):
        own = folder / str(call) / "checkpoints"
        own.mkdir(parents=True)
        child = os.fork()
        if not child:
            _save_until(str(own), call)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            (folder / "calls").write_text(str(call - 1))
            return


@pytest.mark.slow
def test_killed_at_every_call_that_renames_or_removes(tmp_path):
    assert in_a_process(_kill_at_every_call, str(tmp_path)) == 0
    assert int((tmp_path / "calls").read_text()) >= 20
    for own in tmp_path.glob("[0-9]*"):
        number = int((own / "done").read_text())
        earlier, new = ((None, 1), (1, 2), (2, 3), (3, 3))[number]
        folder = own / "checkpoints"
        assert restored_step(str(folder)) in (earlier, new), own.name
        save_steps(str(folder), [4, 5], keep=2)
        assert saved_numbers(folder) == [4, 5]
        assert not [path for path in folder.iterdir() if path.is_dir()]
        assert len(list(folder.iterdir())) == 5  # two of each, and the state file
