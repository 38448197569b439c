import os

import pytest
import tensorflow as tf

from trainers.checkpoints import Checkpoints


def save_steps(folder, steps, keep=3):
    step = tf.Variable(0)
    checkpoints = Checkpoints(folder, keep=keep, step=step)
    for value in steps:
        step.assign(value)
        checkpoints.save(value)


def restored_step(folder):
    step = tf.Variable(0)
    found = Checkpoints(folder, step=step).restore()
    return int(step) if found else None


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
    assert "written anew" in capsys.readouterr().out
    save_steps(str(tmp_path), [3])
    assert restored_step(str(tmp_path)) == 3


def test_no_readable_checkpoint_is_an_error(tmp_path):
    save_steps(str(tmp_path), [1, 2])
    for name in ("ckpt-1.index", "ckpt-2.index"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="None of the checkpoints"):
        restored_step(str(tmp_path))
