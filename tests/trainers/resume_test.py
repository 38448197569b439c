"""Every trainer's real program, killed after three steps and started again, has the same results."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import tfdeq.models  # noqa: F401, registers the model that Keras loads
from tests.training.records.event_files_test import events

ROOT = pathlib.Path(__file__).absolute().parents[2]
FLAGS = ("--train_steps=6", "--log_every=1", "--evaluate_every=6", "--checkpoint_every=1",
         "--inspect_every=4", "--batch_size=4", "--sequence_length=16", "--width=16", "--heads=2",
         "--feedforward=32", "--recurrent_scale=1", "--dropout=0.1", "--shallow_share=0.2",
         "--nojit_compile", "--steps_per_call=2", "--ema=0.5")  # fmt: skip
TRAINERS = {
    "language_model": ("--dataset=text", "--files=words.txt", "--prepared_dir=prepared"),
    "copy_memory": ("--evaluation_batches=2",),
}  # fmt: skip
# Segments whose keys and values are carried from step to step, and through a checkpoint.
MEMORY = ("--carry_memory", "--attention_span=8", "--evaluation_rows=2")


def start(name, folder, workdir, *flags):
    command = [sys.executable, "-m", f"trainers.{name}", *FLAGS, *TRAINERS[name], *flags]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    return output


def results(workdir):
    metrics = json.loads((workdir / "metrics.json").read_text())
    rows = [row for row in zip(metrics["train"]["step"], metrics["train"]["loss"], strict=True)]
    return rows, metrics["test"], keras.models.load_model(workdir / "model.keras").get_weights()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        pytest.param("language_model", ("--evaluation_windows=8",), id="language_model"),
        pytest.param("copy_memory", (), id="copy_memory", marks=pytest.mark.slow),
        pytest.param("language_model", MEMORY, id="memory", marks=pytest.mark.slow),
    ],
)
def test_killed_after_three_steps(name, flags, tmp_path):
    words = random.Random(0).choices(["equilibrium", "solver", "residual", "step"], k=3000)
    (tmp_path / "words.txt").write_text(" ".join(words))
    finish(start(name, tmp_path, tmp_path / "whole", *flags))
    process = start(name, tmp_path, tmp_path / "killed", *flags)
    checkpoint = tmp_path / "killed" / "checkpoints" / "ckpt-3.index"
    deadline = time.monotonic() + 60
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "metrics.json").exists()
    assert "Resuming from" in finish(start(name, tmp_path, tmp_path / "killed", *flags))
    whole, killed = results(tmp_path / "whole"), results(tmp_path / "killed")
    assert killed[:2] == whole[:2]
    for one, other in zip(killed[2], whole[2], strict=True):
        np.testing.assert_array_equal(one, other)
    shown = events(tmp_path / "killed" / "tensorboard")
    missing = {*events(tmp_path / "whole" / "tensorboard")} - {*shown}
    # A start's first step, which compiles, has no time.
    assert all("second" in tag for tag, _ in missing), missing
    assert set(shown.values()) == {1}
