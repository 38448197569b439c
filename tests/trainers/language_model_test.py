"""A short run of the real program, and later commands: resuming, and using a wrong folder."""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tfdeq.models import LanguageModel

SMALL = (
    "--train_steps=8",
    "--log_every=2",
    "--evaluate_every=4",
    "--checkpoint_every=4",
    "--batch_size=4",
    "--sequence_length=16",
    "--width=16",
    "--heads=2",
    "--recurrent_scale=1",  # a nontrivial solve from the first step on
    "--feedforward=32",
    "--evaluation_windows=16",
    "--nojit_compile",  # compiling takes longer than these few steps
)


def run(tmp_path, *arguments, expect=0):
    text = ("--dataset=text", f"--files={tmp_path / '*.txt'}")
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "trainers.language_model",
            *SMALL,
            f"--prepared_dir={tmp_path / 'prepared'}",
            *(() if any("dataset" in argument for argument in arguments) else text),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == expect, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with text and a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    words = random.Random(0).choices(["equilibrium", "solver", "residual", "step"], k=3000)
    (folder / "words.txt").write_text(" ".join(words))
    run(folder, f"--workdir={folder / 'run'}")
    return folder


def test_leaves_metrics_pictures_logs_checkpoint_and_model(trained):
    workdir = trained / "run"
    metrics = json.loads((workdir / "metrics.json").read_text())
    keys = {"bits_per_byte", "residual", "steps"}
    assert keys | {"by_budget"} <= set(metrics["test"])
    # The last twentieth of the single file, every byte except the first; the last window is
    # shorter.
    tokens = (trained / "words.txt").stat().st_size
    tokens -= round(0.95 * tokens) + 1
    assert metrics["test"]["tokens"] == tokens
    assert metrics["test"]["examples"] == -(-tokens // 16)
    assert 0 < metrics["test"]["standard_error"] < metrics["test"]["bits_per_byte"]
    assert set(metrics["test"]["by_budget"]) == {"0.5", "1.0", "2.0", "4.0"}
    assert all(keys <= set(row) for row in metrics["test"]["by_budget"].values())
    # With half the budget fewer steps are made, and the residual falls with the budget.
    rows = [metrics["test"]["by_budget"][budget] for budget in ("0.5", "1.0", "2.0")]
    assert rows[0]["steps"] < rows[1]["steps"]
    assert rows[0]["residual"] > rows[1]["residual"]
    assert "validation_bits_per_byte" in metrics["train"]
    assert metrics["train"]["step"][-1] == 8
    for name in ("quality.png", "residual_by_solver_steps.png", "convergence.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    assert any(name.startswith("events") for name in os.listdir(workdir / "tensorboard"))
    assert (workdir / "checkpoints" / "ckpt-8.index").exists()


def test_records_what_it_was_started_with(trained):
    (start,) = json.loads((trained / "run" / "environment.json").read_text())["starts"]
    assert "--train_steps=8" in start["command"]
    assert start["packages"].keys() >= {"tensorflow", "keras"}
    metrics = json.loads((trained / "run" / "metrics.json").read_text())
    assert metrics["train"]["all_skipped_steps"] == metrics["train"]["rollbacks"] == 0
    assert metrics["train"]["best"]["step"] in (4, 8)


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_and_leaves_nothing(trained):
    output = run(trained, f"--workdir={trained / 'dry'}", "--dry_run")
    for part in ("Parameters: ", "embedding: 4,096", "optimiser", "learning rate", "One step: "):
        assert part in output
    assert not (trained / "dry").exists()


@pytest.mark.slow
def test_flags_from_a_file_and_sigterm(trained):
    """Ended in the middle: the exit status means "try again", and the same command continues."""
    file = trained / "flags.cfg"
    file.write_text("--train_steps=4000\n--checkpoint_every=100000\n")
    workdir = trained / "preempted"
    arguments = (f"--workdir={workdir}", f"--flagfile={file}")
    text = ("--dataset=text", f"--files={trained / '*.txt'}")
    command = [sys.executable, "-m", "trainers.language_model", *SMALL, *text, *arguments]
    command.append(f"--prepared_dir={trained / 'prepared'}")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as p:
        deadline = time.monotonic() + 50
        while (
            not (workdir / "curves.jsonl").exists() or not (workdir / "curves.jsonl").stat().st_size
        ):
            assert time.monotonic() < deadline, p.stdout.read()
            time.sleep(0.1)
        p.terminate()
        output = p.communicate(timeout=50)[0]
    assert p.returncode == 75, output
    assert "Run the same command again to resume from there" in output
    assert list((workdir / "checkpoints").glob("ckpt-*.index"))
    assert "Traceback" not in output


def test_saved_model_gives_the_tested_quality(trained):
    model = keras.models.load_model(trained / "run" / "model.keras")
    assert isinstance(model, LanguageModel)
    logits = model(np.zeros([2, 16], "int32"))
    assert logits.shape == (2, 16, 256)
    assert np.isfinite(logits.numpy()).all()


@pytest.mark.slow
def test_run_again_says_that_nothing_is_left_to_do(trained):
    before = (trained / "run" / "metrics.json").read_bytes()
    output = run(trained, f"--workdir={trained / 'run'}")
    assert "has already finished 8 steps" in output
    assert (trained / "run" / "metrics.json").read_bytes() == before


@pytest.mark.slow
def test_a_finished_run_gets_its_baseline(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    test = json.loads((trained / "run" / "metrics.json").read_text())["test"]
    run(trained, f"--workdir={tmp_path / 'run'}", "--baseline")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"] == test
    assert {"bits_per_byte", "residual", "steps", "by_budget", "name"} <= set(metrics["baseline"])


@pytest.mark.slow  # the refusal itself is in records/resumption_test.py
def test_another_configuration_is_refused_and_nothing_lost(trained):
    before = sorted(os.listdir(trained / "run"))
    output = run(trained, f"--workdir={trained / 'run'}", "--width=32", expect=1)
    assert "--width: 16 there, 32 received" in output
    assert "Traceback" not in output
    assert sorted(os.listdir(trained / "run")) == before


@pytest.mark.slow
def test_resumes_from_the_checkpoint_before_a_corrupt_one(trained):
    workdir = trained / "resumed"
    run(trained, f"--workdir={workdir}")
    (workdir / "metrics.json").unlink()  # as if the process had been killed before its end
    (workdir / "checkpoints" / "ckpt-8.index").write_bytes(b"broken")
    output = run(trained, f"--workdir={workdir}")
    assert "ckpt-8 cannot be read" in output
    assert "Resuming from" in output
    assert "ckpt-4" in output
    again = json.loads((workdir / "metrics.json").read_text())
    assert again["train"]["step"][-1] == 8
    whole = json.loads((trained / "run" / "metrics.json").read_text())
    assert again["test"]["bits_per_byte"] == pytest.approx(whole["test"]["bits_per_byte"], rel=1e-5)


@pytest.mark.slow  # the errors have their own tests, and another configuration tests the line
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--files=/nonexistent/*.txt",), "/nonexistent"),
        (("--dataset=ptb", "--data_dir=/nonexistent"), "/nonexistent"),
        (("--baseline", "--depth=1"), "--baseline trains one application of"),
        (("--heads=3",), "heads must divide width; received width 16, heads 3"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(trained, arguments, message):
    output = run(trained, f"--workdir={trained / 'bad'}", *arguments, expect=1)
    assert message in output
    assert "Traceback" not in output
    assert not (trained / "bad" / "metrics.json").exists()
