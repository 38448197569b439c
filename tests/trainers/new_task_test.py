"""A trainer in a single file, tests/support/image_classifier.py, has all features of runs."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import tfdeq.models  # noqa: F401  Keras finds the layers by name

ROOT = pathlib.Path(__file__).absolute().parents[2]
SMALL = ("--batch_size=32", "--learning_rate=0.01", "--nojit_compile", "--inspect_every=0")


def command(program, *arguments):
    return [sys.executable, "-m", program, *map(str, arguments)]


def run(program, *arguments):
    finished = subprocess.run(
        command(program, *arguments),
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def train(folder, *arguments):
    return run("tests.support.image_classifier", f"--workdir={folder}", *SMALL, *arguments)


def killed(folder, *arguments):
    """Trains until the first checkpoint exists, and is then killed."""
    program = command("tests.support.image_classifier", f"--workdir={folder}", *SMALL, *arguments)
    with subprocess.Popen(
        program, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        deadline = time.monotonic() + 300
        while not list(pathlib.Path(folder).glob("checkpoints/ckpt-*.index")):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was killed and resumed, and one that was not."""
    folders = [tmp_path_factory.mktemp(name) for name in ("killed", "whole")]
    killed(folders[0], "--checkpoint_every=15", "--evaluate_every=15", "--train_steps=60")
    for folder in folders:
        train(folder, "--checkpoint_every=15", "--evaluate_every=15", "--train_steps=60")
    return folders


@pytest.fixture(scope="module")
def metrics(trained):
    return json.loads((trained[0] / "metrics.json").read_text())


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_weights(trained):
    one, other = (keras.models.load_model(folder / "model.keras") for folder in trained)
    for weight, expected in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), expected.numpy())


@pytest.mark.slow
def test_it_is_evaluated_at_four_budgets(metrics):
    test = metrics["test"]
    assert list(test["by_budget"]) == ["0.5", "1.0", "2.0", "4.0"]
    assert test["accuracy"] == test["by_budget"]["1.0"]["accuracy"] > 0.8
    assert test["by_budget"]["4.0"]["residual"] < test["by_budget"]["0.5"]["residual"]
    assert metrics["score"] == {"name": "accuracy", "unit": "", "lower_is_better": False}
    # The best evaluation is that with the highest accuracy.
    train = metrics["train"]
    seen = [value for value in train["validation_accuracy"] if value is not None]
    assert train["best"]["score"] == max(seen)


@pytest.mark.slow
def test_it_is_drawn_and_reported(trained, metrics):
    for name in ("quality", "convergence", "residual_by_solver_steps"):
        assert (trained[0] / f"{name}.png").stat().st_size > 10_000
    said = run("trainers.report", *trained)
    accuracy = metrics["test"]["accuracy"]
    assert f"Test accuracy: {accuracy:.3f}" in said
    assert f"at 4.0 x the budget: {metrics['test']['by_budget']['4.0']['accuracy']:.3f}" in said
    page = (trained[0] / "report.html").read_text()
    assert "accuracy" in page
    assert all(folder.name in page for folder in trained)


@pytest.mark.slow
def test_it_is_exported_and_verified_in_both_runtimes(trained):
    version = trained[0] / "export" / "1"
    said = run("export.saved_model", f"--workdir={trained[0]}", f"--output={version.parent}")
    assert "accuracy" in said
    card = json.loads((version / "assets.extra" / "model_card.json").read_text())
    assert card["signatures"]["serving_default"]["inputs"]["image"]["shape"] == [None, 8, 8, 1]
    assert len(card["quality_by_tolerance"]) == 6
    assert {"accuracy", "loss"} <= set(card["quality_by_tolerance"][0])
    run("export.verify", f"--workdir={trained[0]}", f"--model={version}")
    report = json.loads((trained[0] / "export_report.json").read_text())
    assert report["passed"]
    names = [check["name"] for check in report["checks"]]
    assert {"tensorflow: equal to the Keras model", "c: equal to the Keras model"} <= set(names)
    assert "passed" in run("trainers.report", trained[0])


@pytest.mark.slow
def test_other_data_are_refused(trained):
    program = command(
        "tests.support.image_classifier",
        *(f"--workdir={trained[1]}", *SMALL, "--train_steps=70", "--pictures=390"),
        *("--checkpoint_every=15", "--evaluate_every=15"),
    )
    finished = subprocess.run(
        program, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 1
    assert "--pictures: 400 there, 390 received" in finished.stderr


@pytest.mark.slow
def test_nonsense_is_refused_in_a_line(tmp_path):
    finished = subprocess.run(
        command("tests.support.image_classifier", f"--workdir={tmp_path}", "--tolerance=0"),
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert finished.returncode != 0
    assert "--tolerance must be greater than 0" in finished.stderr
    assert "Traceback" not in finished.stderr
