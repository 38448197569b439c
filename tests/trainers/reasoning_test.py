"""The real program trainers.reasoning: puzzles of every task, tested by size, grade and budget."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import tfdeq.models  # noqa: F401  Keras finds the model by name
from tfdeq.data.puzzles import PUZZLES

ROOT = pathlib.Path(__file__).absolute().parents[2]
SMALL = (
    "--train_puzzles=64", "--validation_puzzles=8", "--test_puzzles=4", "--width=12", "--nojit_compile",
    "--batch_size=8", "--train_steps=6",
)  # fmt: skip
# Flags of an equilibrium; a test may override them with later flags.
SOLVES = (
    "--max_steps=6", "--training_max_steps=6", "--test_budget=2", "--inspect_every=0",
    "--start_noise=0.5",
)  # fmt: skip


def _command(program, *arguments):
    return [sys.executable, "-m", program, *map(str, arguments)]


def _run(program, *arguments, status=0):
    finished = subprocess.run(
        _command(program, *arguments),
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert finished.returncode == status, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


def _train(folder, *arguments, status=0):
    where = (f"--workdir={folder}", f"--prepared_dir={folder.parent / 'prepared'}")
    solves = () if "--depth=1" in arguments else SOLVES
    return _run("trainers.reasoning", *where, *SMALL, *solves, *arguments, status=status)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "prefix_sums"
    _train(
        folder,
        "--test_sizes=8,40",
        "--test_starts=1,3",
        "--checkpoint_every=2",
        f"--test_set={_public(folder.parent)}",
    )
    return folder


def _public(folder):
    """A public set of three strings of 24 bits."""
    path = folder / "24_bits"
    path.mkdir(exist_ok=True)
    bits = np.random.default_rng(0).integers(0, 2, (3, 1, 24))
    np.save(path / "inputs.npy", bits - 0.5)
    np.save(path / "solutions.npy", np.cumsum(bits[:, 0], axis=1) % 2)
    return path


@pytest.mark.slow
def test_it_is_tested_by_size_and_budget(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    test = metrics["test"]
    assert list(test["by_budget"]) == ["0.5", "1.0", "2.0"]
    assert list(test["by_size"]) == ["8", "40"]
    assert list(test["by_set"]) == ["24_bits"]
    assert list(test["by_starts"]) == ["all"]
    assert list(test["by_starts"]["all"]) == ["1", "3"]
    assert test["by_starts"]["all"]["3"]["steps"] > test["by_starts"]["all"]["1"]["steps"]
    by_set = test["by_set"]["24_bits"].values()
    for found in (test, *test["by_budget"].values(), *test["by_size"].values(), *by_set):
        assert {"exact", "places", "settled", "residual", "steps"} <= set(found)
    assert metrics["config"]["width"] == 12  # the given value instead of the recipe's
    assert metrics["score"]["lower_is_better"] is False
    said = _run("trainers.report", trained)
    assert f"size 40: {test['by_size']['40']['exact']:.3f}" in said
    assert "set 24_bits: " in said
    assert "most starts, all: " in said


@pytest.mark.slow
def test_a_finished_run_is_tested_again(trained, tmp_path):
    folder = tmp_path / "runs" / "prefix_sums"
    shutil.copytree(trained.parent, folder.parent)
    first = json.loads((folder / "metrics.json").read_text())
    said = _train(folder, "--test_budget=8", "--test_sizes=16", "--checkpoint_every=2")
    assert "to test it: it has made all its steps" in said
    second = json.loads((folder / "metrics.json").read_text())
    assert list(second["test"]["by_budget"]) == ["0.5", "1.0", "2.0", "4.0", "8.0"]
    assert second["test"]["by_budget"]["2.0"] == first["test"]["by_budget"]["2.0"]
    assert list(second["test"]["by_size"]) == ["16"]
    assert second["train"]["loss"] == first["train"]["loss"]
    assert "already finished" in _train(folder, "--test_budget=8", "--test_sizes=16")


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(set(PUZZLES) - {"prefix_sums"}))
def test_every_task(task, tmp_path):
    _train(tmp_path / task, f"--task={task}")
    test = json.loads((tmp_path / task / "metrics.json").read_text())["test"]
    assert sorted(test.get("by_grade", {})) == sorted(PUZZLES[task].grades)


# The network without an equilibrium is trained fastest.
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            (
                "--segments=2",
                "--halting=settled",
                "--path_noise=0.1",
                "--recursion",
                "--inner_steps=2",
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(("--progressive_weight=0.5", "--shallow_share=0"), marks=pytest.mark.slow),
        ("--depth=1", "--layers=3"),
        pytest.param(
            ("--inspect_every=3", "--inspect_gradient", "--shallow_share=0"), marks=pytest.mark.slow
        ),
    ],
)
def test_ways_to_train(arguments, tmp_path):
    _train(tmp_path / "run", *arguments)
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "curves.jsonl").read_text().splitlines()
    ]
    if "--inspect_gradient" in arguments:
        (cosine,) = {row["gradient_cosine"] for row in rows if row.get("step") == 3} - {None}
        assert -1 <= cosine <= 1.0001  # float32
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["exact"] >= 0


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    """The weights equal those of the run that was not killed, bit for bit; starts are random.

    Compiled by XLA, because otherwise sums of gradients may have another order in another process.
    """
    prepared = f"--prepared_dir={tmp_path / 'prepared'}"
    arguments = (*SMALL, *SOLVES, "--checkpoint_every=2", "--jit_compile", prepared)
    _run("trainers.reasoning", f"--workdir={tmp_path / 'whole'}", *arguments)
    where = f"--workdir={tmp_path / 'run'}"
    with subprocess.Popen(
        _command("trainers.reasoning", where, *arguments),
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as child:  # fmt: skip
        deadline = time.monotonic() + 300
        while not list((tmp_path / "run").glob("checkpoints/ckpt-*.index")):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    _run("trainers.reasoning", where, *arguments)
    one, other = (
        keras.models.load_model(tmp_path / name / "model.keras").get_weights()
        for name in ("whole", "run")
    )
    for weight, expected in zip(one, other, strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.slow
def test_exported_and_verified(trained, tmp_path):
    _run("export.saved_model", f"--workdir={trained}", f"--output={tmp_path}")
    card = json.loads((tmp_path / "1" / "assets.extra" / "model_card.json").read_text())
    assert {"loss", "places"} <= set(card["quality_by_tolerance"][0])
    _run("export.verify", f"--workdir={trained}", f"--model={tmp_path / '1'}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=chess"], "prefix_sums"),
        (["--cell=attention"], "are lines. Give --cell=convolution"),
        (["--task=maze", "--size=8"], "size of maze must be"),
        (["--task=sudoku", "--grade=easy"], "grade of sudoku must be one of one_blank"),
        (["--segments=2", "--progressive_weight=1"], "--progressive_weight=1.0 changes nothing"),
        (["--halting=exact"], "changes nothing"),
        (["--path_noise=0.1"], "changes nothing"),
        (["--test_starts=0"], "must be whole numbers of at least 1"),
        (["--test_sizes=big"], "must be whole numbers of at least 1"),
    ],
)
def test_nonsense(arguments, message, tmp_path):
    said = _train(tmp_path / "run", *arguments, status=1)
    assert message in said
    assert not (tmp_path / "run" / "metrics.json").exists()
