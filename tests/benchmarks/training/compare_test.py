import math
import types

import pytest
from absl import flags

from benchmarks.results.tables import comparison_table
from benchmarks.training import compare, rate_search
from tfdeq.programs.workdir import read_json, write_json

CONFIG = {
    "depth": 0,
    "jacobian_penalty": 0.5,
    "recurrent_scale": 0.0,
    "train_steps": 100,
    "learning_rate": 0.006,
    "seed": 0,
}


class Flags(types.SimpleNamespace):
    """Values of flags, none of which was given on the command line."""

    def __getitem__(self, name):
        return types.SimpleNamespace(present=False)


class NoProcesses:
    """In place of `Runs`: starts nothing."""

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


def test_every_depth_with_and_without_penalty():
    configs = compare.variants(CONFIG)
    assert list(configs) == [
        "equilibrium",
        "1 explicit",
        "1 explicit, penalty",
        "4 explicit",
        "4 explicit, penalty",
        "8 explicit",
        "8 explicit, penalty",
    ]
    assert configs["4 explicit"]["jacobian_penalty"] == 0.0
    # From zero the recurrent weights would leave the penalty nothing to act on.
    assert configs["4 explicit, penalty"]["recurrent_scale"] == 1.0


def test_all_train_for_the_equilibriums_time():
    configs = compare.variants(CONFIG)
    seconds = dict.fromkeys(configs, 0.2) | {"equilibrium": 0.4, "8 explicit": 0.8}
    plan = compare.plan(configs, seconds)
    assert plan["equilibrium"]["train_steps"] == 100
    assert plan["1 explicit"]["train_steps"] == 200
    assert plan["8 explicit"]["train_steps"] == 50


def test_finished_runs_become_a_table_and_a_picture(tmp_path):
    runs = {"equilibrium": CONFIG, "1 explicit": {**CONFIG, "depth": 1}}
    for name in runs:
        for seed, bits in enumerate((1.5, 1.7)):
            test = {"bits_per_byte": bits, "residual": 1e-3}
            train = {"peak_memory_mib": 900.0 + seed}
            metrics = {"config": runs[name], "test": test, "train": train}
            folder = compare.run_folder(str(tmp_path), name, seed)
            write_json(f"{folder}/metrics.json", metrics)
    results = compare.collect(runs, {"equilibrium": 0.4, "1 explicit": 0.2}, str(tmp_path))
    assert results["equilibrium"]["mean_bits"] == pytest.approx(1.6)
    assert results["equilibrium"]["seconds"] == pytest.approx(40.0)
    text = comparison_table(results)
    assert "| equilibrium | 0.006 | 100 | 0.400 | 40 | **1.600** (1.500, 1.700) |" in text
    compare.draw(results, str(tmp_path / "compare.png"))
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_variants_are_refused_and_others_keep_their_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "configuration", lambda names: dict(CONFIG))
    monkeypatch.setattr(
        compare,
        "FLAGS",
        Flags(
            rivals="depths", depths=["1"], only=["2 explicit"], workdir=str(tmp_path), seeds=1,
            equal="steps", report_only=True, results=None, document=None, record=None,
            learning_rates=["0.004"], search_share=0.25,
        ),
    )  # fmt: skip
    with pytest.raises(ValueError, match="No such variants: 2 explicit. Known: equilibrium; 1 exp"):
        compare.main()
    compare.FLAGS.only = ["1 explicit"]
    seconds = {"equilibrium": 0.2, "1 explicit": 0.1, "1 explicit, penalty": 0.1}
    write_json(f"{tmp_path}/seconds_per_step.json", seconds)
    with pytest.raises(ValueError, match="is finished; train them without --report_only"):
        compare.main()
    for name in ("equilibrium", "1 explicit"):
        metrics = {
            "test": {"bits_per_byte": 1.5, "residual": 0.0},
            "train": {"peak_memory_mib": 9.0},
            "config": CONFIG,
        }
        write_json(f"{compare.run_folder(str(tmp_path), name, 0)}/metrics.json", metrics)
    compare.main()
    results = read_json(f"{tmp_path}/compare.json")
    assert set(results) == {"equilibrium", "1 explicit"}
    assert results["equilibrium"]["learning_rate"] == 0.004
    compare.FLAGS.learning_rates = ["0.004", "0.002"]
    with pytest.raises(ValueError, match="--learning_rates must be numbers above 0, ascending"):
        compare.main()
    compare.FLAGS.learning_rates = ["fast"]
    with pytest.raises(ValueError, match=r"ascending; received \['fast'\]"):
        compare.main()


def test_runs_get_what_they_use_and_shorter_ones_go_on(tmp_path, monkeypatch):
    started = {}

    class Processes(NoProcesses):
        def start(self, folder, flags_):
            started[folder.removeprefix(f"{tmp_path}/")] = flags_

    monkeypatch.setattr(compare, "Runs", Processes)
    monkeypatch.setattr(compare, "_program_flags", lambda: {"tpu": ""})
    monkeypatch.setattr(compare, "FLAGS", types.SimpleNamespace(parallel=1, seeds=1))
    whole = {**CONFIG, "model": "deq", "solver": "anderson", "strategy": "one_device"}
    whole["equilibrium_watch"], whole["data_fingerprint"] = "none", "1"
    runs = {"equilibrium": whole, "1 explicit": {**whole, "depth": 1}}
    for name, steps in (("equilibrium", 100), ("1 explicit", 60)):
        config = {**runs[name], "train_steps": steps}
        folder = compare.run_folder(str(tmp_path), name, 0)
        write_json(f"{folder}/config.json", config)
        write_json(f"{folder}/metrics.json", {"config": config})
    # As if the program's own --train_steps had been given.
    monkeypatch.setattr(flags.FLAGS["train_steps"], "using_default_value", False)
    compare.train_all(runs, str(tmp_path))
    assert list(started) == ["1_explicit_seed_0"]
    (given,) = started.values()
    assert given["train_steps"] == 100
    assert not {"solver", "tpu", "data_fingerprint"} & set(given)


def test_the_search_trains_shorter_runs_on_validation_data_alone(tmp_path, monkeypatch):
    """Each variant's own best rate is found, and a run that fails is no candidate."""
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
            metrics = {"train": {"best": {"score": score}}, "config": {"train_steps": 25}}
            write_json(f"{folder}/metrics.json", metrics)

        def wait(self, may_fail=False):
            assert may_fail

    monkeypatch.setattr(compare, "Runs", Processes)
    monkeypatch.setattr(compare, "_program_flags", dict)
    rates = ["0.003", "0.006", "0.012"]
    known = Flags(parallel=1, learning_rates=rates, search_share=0.25)
    monkeypatch.setattr(compare, "FLAGS", known)
    config = {**CONFIG, "model": "deq", "equilibrium_watch": "none", "carry_memory": False}
    runs = {"equilibrium": config, "1 explicit": {**config, "depth": 1}}
    scores = compare.search_rates(runs, str(tmp_path))
    assert {name: rate_search.best(found) for name, found in scores.items()} == best
    assert list(scores["equilibrium"]) == [0.003, 0.006, 0.012, 0.024]
    assert list(scores["1 explicit"]) == [0.003, 0.006, 0.012]
    for (_, rate), given in started.items():
        assert (given["learning_rate"], given["train_steps"]) == (rate, 25)
        assert given["test_windows"] == 1
