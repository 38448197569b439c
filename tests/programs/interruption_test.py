"""The real program, killed repeatedly, ends with the same results as an undisturbed run, bit for bit."""

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

ROOT = pathlib.Path(__file__).absolute().parents[2]
KILLS = 20
FLAGS = (
    "--dataset=text",
    "--train_steps=90",
    "--log_every=2",
    "--evaluate_every=30",
    "--checkpoint_every=3",
    "--batch_size=4",
    "--sequence_length=16",
    "--width=16",
    "--heads=2",
    "--recurrent_scale=1",
    "--dropout=0.1",  # its random generator is part of the state
    "--feedforward=32",
    "--evaluation_windows=16",
    "--nojit_compile",  # compiling takes longer than these few steps
)
# Columns that must be the same; times and memory need not be.
CURVES = (
    "step",
    "loss",
    "gradient_norm",
    "learning_rate",
    "residual",
    "steps",
    "best",
    "skipped_steps",
)


def start(folder, workdir):
    command = [sys.executable, "-m", "trainers.language_model", *FLAGS, f"--workdir={workdir}"]
    command += [f"--files={folder / '*.txt'}", f"--prepared_dir={folder / 'prepared'}"]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    return output


def results(workdir):
    metrics = json.loads((workdir / "metrics.json").read_text())
    curves = {name: metrics["train"][name] for name in CURVES}
    return curves, metrics["test"], keras.models.load_model(workdir / "model.keras").get_weights()


def wait_for(process, condition, seconds):
    """Waits until a condition holds, the process has ended, or the time is up; True if it holds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return True
        time.sleep(0.0005)
    return False


def _size(path):
    return path.stat().st_size if path.exists() else 0


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    words = random.Random(0).choices(["equilibrium", "solver", "residual", "step"], k=3000)
    (tmp_path / "words.txt").write_text(" ".join(words))
    finish(start(tmp_path, tmp_path / "whole"))

    moments = random.Random(1)
    workdir = tmp_path / "killed"
    checkpoints, rows = workdir / "checkpoints", workdir / "curves.jsonl"
    while_writing = kills = 0
    for number in range(KILLS):
        process = start(tmp_path, workdir)
        before = _size(rows)
        # Usually after this start has made progress, and sometimes before.
        if number % 5:
            wait_for(process, lambda before=before: _size(rows) > before, 60)
        if number % 2:
            # A checkpoint is first written under another name.
            seen = wait_for(process, lambda: (checkpoints / "unfinished").exists(), 5)
            while_writing += seen
        else:
            time.sleep(moments.uniform(0.0, 0.4))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
    assert kills >= KILLS - 2, "the run ended before it was killed often enough: make it longer"
    assert while_writing
    finish(start(tmp_path, workdir))

    for expected, found in zip(results(tmp_path / "whole"), results(workdir), strict=True):
        if isinstance(expected, dict):
            assert found == expected
        else:
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)
    starts = json.loads((workdir / "environment.json").read_text())["starts"]
    assert len(starts) > kills // 2
