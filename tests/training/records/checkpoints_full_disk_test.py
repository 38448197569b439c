"""Checkpoints that do not fit on the disk: an error message, no partial files, no lost checkpoint."""

import contextlib
import ctypes
import errno
import multiprocessing
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys

import pytest
import tensorflow as tf

from tests.support.checkpoint_cases import contents, restored_step, saved_numbers
from tfdeq.training.records import checkpoints as checkpoints_module
from tfdeq.training.records.checkpoints import Checkpoints


def check_failed_save(checkpoints, folder, reason, lack=None):
    """Fails to save step 3, with an error message and an unchanged folder."""
    before = contents(folder)
    failure = pytest.raises(OSError, match="The checkpoint of step 3 could not be written to")
    with failure as caught, lack or contextlib.nullcontext():
        checkpoints.save(3)
    text = str(caught.value)
    assert "\n" not in text
    assert f"{folder}: " in text
    assert re.search(reason, text), text
    assert "the last good one is ckpt-2" in text
    assert "Free some space" in text
    assert contents(folder) == before
    assert not [path for path in folder.iterdir() if path.is_dir()]
    assert tf.train.latest_checkpoint(folder) == str(folder / "ckpt-2")
    assert restored_step(str(folder)) == 2
    return text


def check_next_save(checkpoints, folder):
    checkpoints.save(3)
    assert saved_numbers(folder) == [2, 3]
    assert tf.train.latest_checkpoint(folder) == str(folder / "ckpt-3")
    (folder / "ckpt-3.index").unlink()
    assert restored_step(str(folder)) == 2


def two_saved(folder):
    step = tf.Variable(0)
    checkpoints = Checkpoints(str(folder), keep=2, step=step)
    for value in (1, 2):
        step.assign(value)
        checkpoints.save(value)
    step.assign(3)
    return checkpoints


@contextlib.contextmanager
def size_limit(size):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def save_under_size_limits(folder):
    # The signal would end the process before it could report the error.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    checkpoints = two_saved(folder)
    data = (folder / "ckpt-2.data-00000-of-00001").stat().st_size
    index = (folder / "ckpt-2.index").stat().st_size
    assert data < index  # so that either of them can be the one that does not fit
    for size in (0, 10, data // 2, data - 1, data, index - 1):
        text = check_failed_save(checkpoints, folder, "File too large", size_limit(size))
        assert (".data-" if size < data else ".index") in text
    check_next_save(checkpoints, folder)


MAY_NOT_MOUNT = 77


def save_on_a_full_disk(folder):
    new_namespace = 0x00020000  # CLONE_NEWNS: only this process sees the mount, which ends with it
    if ctypes.CDLL(None).unshare(new_namespace):
        sys.exit(MAY_NOT_MOUNT)
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)],
    ):
        if subprocess.run(command, check=False).returncode:
            sys.exit(MAY_NOT_MOUNT)
    checkpoints = two_saved(folder)
    filler, texts = folder / "filler", []
    # For some numbers of free pages, each of the files is the one that does not fit.
    for pages in range(20):
        disk = os.statvfs(folder)
        filler.write_bytes(bytes((disk.f_bavail - pages) * disk.f_bsize))
        try:
            texts.append(check_failed_save(checkpoints, folder, "No space left on device"))
        except pytest.fail.Exception:  # no error: it did fit
            break
        finally:
            filler.unlink()
    assert len(texts) >= 2
    check_next_save(checkpoints, folder)
    for part in (".data-", ".index"):
        assert any(part in text for text in texts), texts


def in_a_process(function, *arguments):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tensorflow", "keras"])
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join(timeout=55)
    return process.exitcode


def test_file_size_limits(tmp_path):
    assert in_a_process(save_under_size_limits, tmp_path) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_disk(tmp_path):
    code = in_a_process(save_on_a_full_disk, tmp_path)
    if code == MAY_NOT_MOUNT:
        pytest.skip("this process may not mount a tmpfs")
    assert code == 0


def test_no_space_for_the_state_file_alone(tmp_path, monkeypatch):
    checkpoints = two_saved(tmp_path)

    def no_space(path, _):
        pathlib.Path(path).write_bytes(b"model_ch")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module, "_write_state", no_space)
        check_failed_save(checkpoints, tmp_path, "No space left on device: .*checkpoint'")
        # A lost state file that cannot be written again does not prevent restoring.
        (tmp_path / "checkpoint").unlink()
        assert restored_step(str(tmp_path)) == 2
    check_next_save(checkpoints, tmp_path)


def test_a_state_file_that_cannot_be_replaced(tmp_path):
    checkpoints = two_saved(tmp_path)
    (tmp_path / "checkpoint").unlink()
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(OSError, match="directory.*the last good one is ckpt-3"):
        checkpoints.save(3)
    assert saved_numbers(tmp_path) == [1, 2, 3]  # complete, and none was removed for it
    assert restored_step(str(tmp_path)) == 3
    (tmp_path / "checkpoint").rmdir()
    check_next_save(checkpoints, tmp_path)


def test_the_first_checkpoint_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="step 7 could not be written .* there is none yet"):
        Checkpoints(str(tmp_path / "file"), step=tf.Variable(0)).save(7)
