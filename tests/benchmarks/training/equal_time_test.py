"""Comparisons at equal time: which runs are started, with which flags, and how a rate is found."""

import math

import pytest
from absl import flags

from benchmarks.training import compare, equal_time, rate_search
from benchmarks.training.equal_time import Comparison
from tfdeq.programs.workdir import write_json

CONFIG = {
    "depth": 0,
    "model": "deq",
    "train_steps": 100,
    "learning_rate": 0.006,
    "seed": 0,
    "equilibrium_watch": "none",
}


class NoProcesses:
    """A replacement for `Runs` that starts no processes."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def wait(self, may_fail=False):
        pass


@pytest.fixture(autouse=True, scope="module")
def parsed_flags():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["compare", "--workdir=unused"])
    assert compare.FLAGS is flags.FLAGS  # the flags of its trainer are defined


def _comparison(folder, flags_=()):
    settled = {"test_windows": 1}
    return Comparison("trainers.language_model", str(folder), 1, dict(flags_), settled)


def test_runs_get_what_they_use_and_shorter_ones_go_on(tmp_path, monkeypatch):
    started = {}

    class Processes(NoProcesses):
        def start(self, folder, flags_):
            started[folder.removeprefix(f"{tmp_path}/")] = flags_

    monkeypatch.setattr(equal_time, "Runs", Processes)
    whole = {**CONFIG, "solver": "anderson", "strategy": "one_device", "data_fingerprint": "1"}
    runs = {"equilibrium": whole, "1 explicit": {**whole, "depth": 1}}
    made = _comparison(tmp_path, {"tpu": ""})
    for name, steps in (("equilibrium", 100), ("1 explicit", 60)):
        config = {**runs[name], "train_steps": steps}
        folder = made.folder(name, 0.006, 0)
        write_json(f"{folder}/config.json", config)
        write_json(f"{folder}/metrics.json", {"config": config})
    # As if the program's own --train_steps had been given.
    monkeypatch.setattr(flags.FLAGS["train_steps"], "using_default_value", False)
    made.train(runs, seeds=1)
    assert list(started) == ["1_explicit_rate_0.006_seed_0"]
    (given,) = started.values()
    assert given["train_steps"] == 100
    assert not {"solver", "tpu", "data_fingerprint"} & set(given)


def test_where_every_answer_is_right_the_loss_decides(tmp_path, monkeypatch):
    losses = {0.003: 0.2, 0.006: 0.1}

    class Processes(NoProcesses):
        def start(self, folder, given):
            loss = losses[given["learning_rate"]]
            train = {"step": [50, 100], "validation_loss": [None, loss]}
            metrics = {
                "train": {**train, "best": {"score": 1.0, "step": 100}},
                "score": {"name": "exact", "lower_is_better": False},
                "config": {"train_steps": 100},
            }
            write_json(f"{folder}/metrics.json", metrics)

    monkeypatch.setattr(equal_time, "Runs", Processes)
    found = _comparison(tmp_path).best_rates(
        {"equilibrium": CONFIG}, {"equilibrium": [0.003, 0.006]}
    )
    assert found == {"equilibrium": 0.006}


@pytest.mark.parametrize("rises", [False, True])
def test_the_search_trains_shorter_runs_on_validation_data_alone(rises, tmp_path, monkeypatch):
    """Each variant's own best rate is found, and a run that fails is not a candidate."""
    best = {"equilibrium": 0.012, "1 explicit": 0.006}
    started = {}

    class Processes(NoProcesses):
        def start(self, folder, given):
            name, rate = folder.removeprefix(f"{tmp_path}/search/").split("_rate_")
            rate = float(rate.removesuffix("_seed_0"))
            started[name, rate] = given
            if rate > 0.012:
                return  # it diverged
            score = abs(math.log(rate / best[name.replace("_", " ")]))
            metrics = {
                "train": {"best": {"score": 1 - score if rises else score}},
                "score": {"name": "exact" if rises else "loss", "lower_is_better": not rises},
                "config": {"train_steps": 25},
            }
            write_json(f"{folder}/metrics.json", metrics)

        def wait(self, may_fail=False):
            assert may_fail

    monkeypatch.setattr(equal_time, "Runs", Processes)
    config = {**CONFIG, "carry_memory": False}
    runs = {"equilibrium": config, "1 explicit": {**config, "depth": 1}}
    scores = _comparison(tmp_path).search_rates(runs, [0.003, 0.006, 0.012], 0.25)
    assert {name: rate_search.best(found) for name, found in scores.items()} == best
    assert list(scores["equilibrium"]) == [0.003, 0.006, 0.012, 0.024]
    assert list(scores["1 explicit"]) == [0.003, 0.006, 0.012]
    for (_, rate), given in started.items():
        assert (given["learning_rate"], given["train_steps"]) == (rate, 25)
        assert given["test_windows"] == 1


def test_the_better_one_of_two_whole_runs(tmp_path, monkeypatch):
    """A run that fails is not a candidate."""

    class Processes(NoProcesses):
        def start(self, folder, given):
            assert given["train_steps"] == 100
            scores = {0.003: 1.0, 0.006: 2.0}
            if given["learning_rate"] in scores:
                metrics = {
                    "train": {"best": {"score": scores[given["learning_rate"]]}},
                    "config": {"train_steps": 100},
                }
                write_json(f"{folder}/metrics.json", metrics)

    monkeypatch.setattr(equal_time, "Runs", Processes)
    runs = {"equilibrium": CONFIG, "1 explicit": {**CONFIG, "depth": 1}}
    candidates = {"equilibrium": [0.003, 0.006], "1 explicit": [0.006, 0.012]}
    found = _comparison(tmp_path).best_rates(runs, candidates)
    assert found == {"equilibrium": 0.003, "1 explicit": 0.006}
