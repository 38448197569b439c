"""trainers.image_classifier, by its real program: every cell, from files to a verified export."""

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
import tensorflow as tf

import tfdeq.models  # noqa: F401  Keras finds the layers by their names
from tests.data.images.mnist_test import write

ROOT = pathlib.Path(__file__).absolute().parents[2]
SMALL = (
    "--stem_stride=4", "--batch_size=8", "--train_steps=6", "--checkpoint_every=2",
    "--evaluate_every=3", "--inspect_every=0", "--shift=1",
)  # fmt: skip
SOLVES = ("--max_steps=4", "--training_max_steps=4")
BLOCKS = ("--groups=2", "--expansion=2", "--head_features=8")
OF = {
    "multiscale": ("--cell=multiscale", "--branches=4,8", *BLOCKS),
    "residual": ("--cell=residual", "--filters=4", *BLOCKS),
    "monotone": ("--cell=monotone", "--filters=4", "--pooling=2"),
    "monotone_multiscale": ("--cell=monotone_multiscale", "--branches=4,4", "--pooling=2"),
}
MULTISCALE = (*OF["multiscale"], *SOLVES)


def _command(program, *arguments):
    return [sys.executable, "-m", program, *map(str, arguments)]


def _run(program, *arguments, status=0):
    finished = subprocess.run(
        _command(program, *arguments),
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert finished.returncode == status, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


def _pictures(count, seed):
    """Bright above or below."""
    random = np.random.default_rng(seed)
    kinds = random.integers(0, 2, count)
    x = random.integers(0, 60, (count, 28, 28), np.uint8)
    for row, kind in enumerate(kinds):
        x[row, 14 * kind : 14 * kind + 14] += 150
    return x, kinds


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("mnist"), _pictures(80, 0))


def _where(folder, data):
    small = (*SMALL, "--validation_pictures=20")
    return (f"--workdir={folder}", "--dataset=mnist", f"--data_dir={data}", *small)


def _train(folder, data, *arguments):
    return _run("trainers.image_classifier", *_where(folder, data), *arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(MULTISCALE, id="multiscale"),
        pytest.param((*OF["residual"], "--depth=2"), id="applications"),
        pytest.param((*OF["residual"], *SOLVES, "--skip=state", "--mirror"), id="residual"),
        pytest.param((*OF["monotone"], *SOLVES), id="monotone"),
        pytest.param((*OF["monotone_multiscale"], *SOLVES), id="monotone_multiscale"),
        pytest.param((*OF["multiscale"], "--model=resnet", "--depth=1"), id="network"),
    ],
)
def test_every_model_is_trained_tested_drawn_exported_and_verified(arguments, data, tmp_path):
    folder = tmp_path / "run"
    _train(folder, data, *arguments)
    metrics = json.loads((folder / "metrics.json").read_text())
    test = metrics["test"]
    assert {"accuracy", "loss"} <= set(test)
    explicit = "--model=resnet" in arguments
    assert list(test["by_budget"]) == (["1.0"] if explicit else ["0.5", "1.0", "2.0", "4.0"])
    for name in ("confusion.png", "pictures.png", "quality.png"):
        assert (folder / name).stat().st_size > 5000
    confusion = json.loads((folder / "confusion.json").read_text())
    assert np.sum(confusion["confusion"]) == test["examples"] == 8
    share = np.trace(confusion["confusion"]) / 8
    assert share == pytest.approx(test["accuracy"])
    _exported_and_verified(tmp_path)


def _exported_and_verified(folder):
    """Returns the version of the run in the folder `run`."""
    run, version = f"--workdir={folder / 'run'}", folder / "export" / "1"
    _run("export.saved_model", run, f"--output={version.parent}")
    _run("export.verify", run, f"--model={version}")
    return version


@pytest.mark.slow
def test_killed_and_resumed(data, tmp_path):
    """The weights are those of the run that was not killed, to the bit."""
    arguments = (*MULTISCALE, "--train_steps=12")
    _train(tmp_path / "whole", data, *arguments)
    command = _command("trainers.image_classifier", *_where(tmp_path / "run", data), *arguments)
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        deadline = time.monotonic() + 300
        while not list((tmp_path / "run").glob("checkpoints/ckpt-*.index")):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    _train(tmp_path / "run", data, *arguments)
    one, other = (
        keras.models.load_model(tmp_path / name / "model.keras").get_weights()
        for name in ("whole", "run")
    )
    for weight, expected in zip(one, other, strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.slow
def test_a_folder_of_pictures(tmp_path):
    random = np.random.default_rng(0)
    for kind, bright in (("dark", 0), ("light", 150)):
        for number in range(40):
            x = random.integers(bright, bright + 60, (9, 7, 3), np.uint8)
            path = tmp_path / "pictures" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            tf.io.write_file(str(path), tf.io.encode_png(x))
    small = (*SMALL, *MULTISCALE, "--dataset=folder", "--image_size=16")
    arguments = (f"--workdir={tmp_path / 'run'}", *small)
    folder = f"--data_dir={tmp_path / 'pictures'}"
    _run("trainers.image_classifier", folder, *arguments)
    found = json.loads((tmp_path / "run" / "confusion.json").read_text())
    assert found["classes"] == ["dark", "light"]
    version = _exported_and_verified(tmp_path)
    card = json.loads((version / "assets.extra" / "model_card.json").read_text())
    assert card["signatures"]["serve_encoded"]["inputs"]["encoded"]["dtype"] == "string"
    assert set(card["status"]) == {"-1", "0", "1", "2", "3"}
    (tmp_path / "pictures" / "dark" / "broken.jpg").write_bytes(b"no picture")
    arguments = (folder, *arguments[1:], f"--workdir={tmp_path / 'other'}")
    said = _run("trainers.image_classifier", *arguments, status=1)
    assert "dark/broken.jpg' cannot be read" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cell=monotone", "--expansion=3"], "--expansion=3 changes nothing"),
        (["--cell=monotone_multiscale", "--filters=3"], "--filters=3 changes nothing"),
        (["--monotonicity=2"], "--monotonicity=2.0 changes nothing"),
        (["--model=resnet"], "--model=resnet needs a --depth"),
        (["--stem_stride=3"], "must be a power of 2"),
        (["--image_size=64"], "--image_size=64 changes nothing"),
        (["--branches=4,5", "--groups=2"], "groups must divide"),
        (["--validation_pictures=80"], "--validation_pictures=80 of 80"),
    ],
)
def test_nonsense(arguments, message, data, tmp_path):
    where = _where(tmp_path / "run", data)
    finished = subprocess.run(
        _command("trainers.image_classifier", *where, *arguments),
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert finished.returncode != 0
    assert message in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
