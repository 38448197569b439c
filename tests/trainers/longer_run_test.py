"""A run that is made longer, and one whose text has moved."""

import json

import keras
import numpy as np
import pytest
from absl import flags

from tests.trainers.language_model_test import run
from tfdeq.data.token_data import token_data
from tfdeq.training.text import language_model
from trainers.language_model import CONFIGURATION_FLAGS

SMALL = {
    "train_steps": 4,
    "batch_size": 2,
    "sequence_length": 8,
    "width": 8,
    "heads": 2,
    "feedforward": 8,
    "recurrent_scale": 1.0,
    "evaluation_windows": 2,
    "warmup_share": 0.05,
    "shallow_share": 0.5,
    "jit_compile": False,
    "inspect_every": 0,
    "log_every": 1,
    "checkpoint_every": 2,
}


@pytest.fixture(autouse=True)
def _train_steps_are_given(monkeypatch):
    """As if set by the flag, even if another test has parsed a command line."""
    monkeypatch.setattr(flags.FLAGS["train_steps"], "using_default_value", False)


def text(seed=0):
    streams = {
        name: np.random.default_rng(seed + index).integers(0, 9, 200).astype(np.uint8)
        for index, name in enumerate(("train", "validation", "test"))
    }
    return token_data(streams, vocabulary_size=9, unit="byte")


def train(folder, seed=0, **changes):
    defaults = {name: flags.FLAGS[name].default for name in CONFIGURATION_FLAGS}
    return language_model.train({**defaults, **SMALL, **changes}, str(folder), text(seed))


LSTM = {"model": "lstm", "depth": 1}  # compiles quickly


def column(metrics, name):
    """Returns step -> value, for the rows with a value."""
    rows = zip(metrics["train"]["step"], metrics["train"][name], strict=True)
    return {step: value for step, value in rows if value is not None}


@pytest.mark.slow
def test_a_finished_run_goes_on_for_more_steps(tmp_path, capsys):
    short = train(tmp_path, **LSTM)
    weights = keras.models.load_model(tmp_path / "model.keras").get_weights()
    long = train(tmp_path, **LSTM, train_steps=9)
    assert "to 9 steps instead of 4" in capsys.readouterr().out
    # The existing rows remain, and the others follow.
    assert list(column(long, "loss")) == list(range(1, 10))
    assert column(short, "loss").items() <= column(long, "loss").items()
    # The rate follows the new length: higher than where the shorter one had ended.
    rates = column(long, "learning_rate")
    assert rates[5] > 2 * rates[4]
    assert long["config"]["train_steps"] == 9
    assert json.loads((tmp_path / "metrics.json").read_text())["test"] == long["test"]
    renewed = keras.models.load_model(tmp_path / "model.keras").get_weights()
    assert any((one != other).any() for one, other in zip(weights, renewed, strict=True))
    again = train(tmp_path, **LSTM, train_steps=9)
    assert again == json.loads((tmp_path / "metrics.json").read_text())
    with pytest.raises(ValueError, match=r"has made 9 steps, more than --train_steps=4"):
        train(tmp_path, **LSTM)


@pytest.mark.slow
def test_an_equilibrium_does_not_go_back_to_its_start(tmp_path):
    train(tmp_path)
    before = json.loads((tmp_path / "residuals.json").read_text())
    long = train(tmp_path, train_steps=9)
    # Half of the first length, not of the new one.
    expected = {step: int(step <= 2) for step in range(1, 10)}
    assert column(long, "explicit_steps") == expected
    after = json.loads((tmp_path / "residuals.json").read_text())
    assert after["before"] == before["before"]
    assert after["after"] != before["after"]


@pytest.mark.slow
def test_the_old_results_stay_until_the_new_ones_are_there(tmp_path, monkeypatch):
    train(tmp_path, **LSTM)
    before = (tmp_path / "metrics.json").read_bytes(), (tmp_path / "model.keras").read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tfdeq.training.evaluation.Evaluator.results", fail)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, **LSTM, train_steps=6)
    after = (tmp_path / "metrics.json").read_bytes(), (tmp_path / "model.keras").read_bytes()
    assert after == before
    assert train(tmp_path, **LSTM, train_steps=6)["train"]["step"][-1] == 6


def test_moved_text_is_the_same_and_changed_text_is_not(tmp_path):
    metrics = train(tmp_path, **LSTM, files="a/*.txt", dataset="text")
    assert train(tmp_path, **LSTM, files="b/*.txt", dataset="text")["test"] == metrics["test"]
    # Programs that read the text of a run look there.
    assert json.loads((tmp_path / "config.json").read_text())["files"] == "b/*.txt"
    with pytest.raises(ValueError, match="has changed since"):
        train(tmp_path, seed=7, **LSTM, files="b/*.txt", dataset="text")


@pytest.mark.slow
def test_baselines_are_made_longer_too(tmp_path):
    """With the real program; baselines only get the flags that they use."""
    words = np.random.default_rng(0).choice(["equilibrium", "solver", "residual"], 3000)
    (tmp_path / "words.txt").write_text(" ".join(words))
    arguments = (
        f"--workdir={tmp_path / 'run'}",
        "--baseline",
        "--solver=anderson",
        "--max_steps=6",
    )
    run(tmp_path, *arguments)
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "words.txt").rename(moved / "words.txt")
    longer = (*arguments, "--train_steps=12", f"--files={moved / '*.txt'}")
    assert "to 12 steps instead of 8" in run(tmp_path, *longer)
    for folder in (tmp_path / "run", *(tmp_path / "run" / "baselines").glob("depth*")):
        if folder.is_dir():
            metrics = json.loads((folder / "metrics.json").read_text())
            assert list(column(metrics, "loss")) == [2, 4, 6, 8, 10, 12]
    assert "baseline" in json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "has already finished 12 steps" in run(tmp_path, *longer)
    said = run(tmp_path, *arguments, f"--files={moved / '*.txt'}", expect=1)
    assert "has made 12 steps, more than --train_steps=8" in said
