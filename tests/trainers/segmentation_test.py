"""trainers.segmentation, by its real program: training, test, export and verification."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).absolute().parents[2]


def _run(program, *arguments, fails=False):
    finished = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert bool(finished.returncode) == fails, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


@pytest.mark.slow
def test_trained_exported_and_verified(tmp_path):
    run = f"--workdir={tmp_path / 'run'}"
    small = (
        "--image_size=16", "--train_pictures=64", "--validation_pictures=8", "--test_pictures=16",
        "--branches=4,8", "--groups=2", "--batch_size=16", "--train_steps=30", "--learning_rate=0.01",
        "--evaluate_every=15", "--checkpoint_every=15", "--inspect_every=0", "--max_steps=4",
        "--training_max_steps=4",
    )  # fmt: skip
    _run("trainers.segmentation", run, *small)
    test = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    assert {"iou", "loss", "accuracy"} <= set(test)
    assert list(test["by_budget"]) == ["0.5", "1.0", "2.0", "4.0"]
    # Equal logits of all classes have log 4 = 1.39.
    assert test["loss"] < 1.2
    version = tmp_path / "export" / "1"
    _run("export.saved_model", run, f"--output={version.parent}")
    _run("export.verify", run, f"--model={version}")
    card = json.loads((version / "assets.extra" / "model_card.json").read_text())
    outputs = card["signatures"]["serve_encoded"]["outputs"]
    assert outputs["output_0"]["shape"] == [None, 16, 16, 4]


@pytest.mark.slow
def test_too_small_pictures_are_refused(tmp_path):
    said = _run("trainers.segmentation", f"--workdir={tmp_path}", "--image_size=8", fails=True)
    assert "--image_size" in said
    assert "Traceback" not in said
