"""Tests of benchmarks.training.suite and benchmarks.results.document: from finished runs to a document."""

import os
import types

import pytest

from benchmarks.results import document
from benchmarks.results.tables import memory_table
from benchmarks.training import recipes, suite
from benchmarks.training.suites import SUITES, Suite
from tfdeq.programs.workdir import write_json

CONFIG = {"depth": 0, "train_steps": 100, "sequence_length": 400}


def _finished(folder, loss, depth=0):
    test = {"loss": loss}
    if not depth:
        solved = {"loss": loss, "residual": 2e-3, "steps": 4.0}
        test = {**solved, "by_budget": {"1.0": solved, "2.0": {**solved, "residual": 1e-3}}}
    test["by_length"] = {"100": {"loss": 10 * loss}}
    steps = list(range(10, 1010, 10))
    train = {
        "step": steps,
        "loss": [loss + 1 / step for step in steps],
        # The thinned curve omits the highest one.
        "residual": [0.05 if step == 30 else 2e-3 for step in steps] if not depth else [None] * 100,
        "validation_loss": [loss if step % 500 == 0 else None for step in steps],
        "validation_residual": [1e-3 if step % 500 == 0 and not depth else None for step in steps],
        "seconds_per_step": 0.6,
        "peak_memory_mib": 900.0,
    }
    config = {**CONFIG, "depth": depth, "data_dir": str(folder)}
    write_json(
        f"{folder}/metrics.json",
        {"config": config, "parameters": 13584, "train": train, "test": test},
    )


@pytest.fixture
def runs(tmp_path):
    made = Suite("trainers.copy_memory", {"DEQ": {}, "LSTM of ours": {}, "not finished": {}})
    for seed in range(2):
        _finished(suite.run_folder(str(tmp_path), "DEQ", seed), 1e-6 * (seed + 1))
    _finished(suite.run_folder(str(tmp_path), "LSTM of ours", 0), 0.05, depth=1)
    return suite.collect(made, str(tmp_path), seeds=2)


def test_what_is_kept_of_finished_runs(runs):
    assert {name: [row["seed"] for row in rows] for name, rows in runs.items()} == {
        "DEQ": [0, 1],
        "LSTM of ours": [0],
    }
    curves = runs["DEQ"][0]["curves"]
    assert curves["validation_loss"] == [[500, 1e-6], [1000, 1e-6]]
    assert len(curves["loss"]) <= suite.POINTS
    assert curves["loss"][-1][0] == 1000
    assert 30 not in [step for step, _ in curves["residual"]]
    assert runs["DEQ"][0]["figures"]["seconds_per_step"] == 0.6
    assert runs["DEQ"][0]["figures"]["largest_residual"] == 0.05
    assert "largest_residual" not in runs["LSTM of ours"][0]["figures"]
    assert runs["DEQ"][0]["config"] == {**CONFIG, "depth": 0}


def test_what_is_known_stays_and_is_not_trained_again(runs, tmp_path, monkeypatch):
    made = Suite("trainers.copy_memory", {"DEQ": {}, "LSTM of ours": {}})
    folder = tmp_path / "another machine"
    _finished(suite.run_folder(str(folder), "LSTM of ours", 1), 0.04, depth=1)
    known = {name: [row for row in rows if row["seed"] == 0] for name, rows in runs.items()}
    found = suite.collect(made, str(folder), seeds=2, known=known)
    assert found["DEQ"] == known["DEQ"]
    assert [row["test"]["loss"] for row in found["LSTM of ours"]] == [0.05, 0.04]
    started = []

    class Runs:
        def __init__(self, *arguments):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def start(self, folder, flags):
            started.append(os.path.basename(folder))

        def wait(self):
            pass

    monkeypatch.setattr(suite, "Runs", Runs)
    wanted = types.SimpleNamespace(parallel=1, seeds=2, only=[])
    monkeypatch.setattr(suite, "FLAGS", wanted)
    suite.train_all(made, str(folder), {}, known)
    assert started == ["DEQ_seed_1"]


def test_tables(runs):
    table = document.suite_table(runs, [("TCN (2018)", "16K", "2.7e-5", "3 GB")])
    deq = "| DEQ | 13,584 | **1.5e-06** (1e-06, 2e-06) | 2.0e-03, 4.0 | 5.0e-02 | 100 | 0.60 | 1 |"
    assert deq in table
    assert "| LSTM of ours | 13,584 | **0.05** (0.05) |  |  | 100 | 0.60 | 1 | 900 MiB |" in table
    assert "| *published:* TCN (2018) | 16K | 2.7e-5 |  |  |  |  |  | 3 GB |" in table
    del runs["DEQ"][0]["figures"]["largest_residual"], runs["DEQ"][1]["figures"]["largest_residual"]
    assert "| 2.0e-03, 4.0 | 2.0e-03 |" in document.suite_table(runs, [])
    assert "| DEQ | 2.0 × | 1.5e-06 | 1.0e-03 | 4.0 |" in document.budget_table(runs)
    assert "LSTM" not in document.budget_table(runs)
    assert "| LSTM of ours | 400 | 100 | 0.5 |" in document.length_table(runs)


def test_the_document_names_what_was_not_run(runs, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    write_json(f"{folder}/copy_memory.json", {"suite": "copy_memory", "runs": runs})
    text = document.document(str(folder), str(tmp_path / "results.md"))
    assert "13,584" in text
    missing = len(document.SUITE_COMMANDS) - 1 + 1 + 1
    assert text.count("Not run yet.") == missing + 1
    memory = [{"depth": 0, "bytes": 1, "seconds": 1.0}, {"depth": 1, "bytes": 2, "seconds": 2.0}]
    write_json(f"{folder}/training_memory.json", {"rows": memory})
    text = document.document(str(folder), str(tmp_path / "results.md"))
    assert text.count("Not run yet.") == missing
    for picture in ("copy_memory", "copy_memory_sizes", "memory"):
        assert f"(results_{picture}.png)" in text
        assert (tmp_path / f"results_{picture}.png").read_bytes().startswith(b"\x89PNG")
    for _, preset in document.NOT_RUN:
        assert f"--flagfile=trainers/presets/{preset}.flags" in text


def test_adaptive_table():
    row = {"vocabulary_size": 33000, "mode": "XLA", "softmax": "adaptive", "median_seconds": 0.0123}
    row = {**row, "ratio": 0.25}
    assert "| 33,000 | adaptive | XLA | 12 | 0.25 |  |" in document.adaptive_table([row])
    assert "| 0.25 | 3 |" in document.adaptive_table([{**row, "peak_bytes": 3 * 2**20}])


def test_the_verdict_on_recipes_names_those_without_an_equilibrium():
    rows = {"a": (2.1, 0.02), "b": (2.0, 0.1), "c": (1.9, 0.5)}
    found = {name: {"mean_bits": bits, "residual": r} for name, (bits, r) in rows.items()}
    assert document.recipes_verdict(found) == (
        "From the lowest bits to the highest: b (2.000), a (2.100). Without an equilibrium at the end, a "
        "residual above 0.1: c.\n"
    )
    del found["c"]
    assert document.recipes_verdict(found).endswith("b (2.000), a (2.100).\n")


def test_the_recipes_flags_are_the_trainers():
    rows = {name: flags_ for name, _, flags_ in recipes.recipe_rows()}
    assert rows["equilibrium"] == ""
    assert rows["fixed-point correction"] == "`--correction_steps=2,4`"
    config = {"jacobian_penalty": 0.5, "correction_steps": []}
    variants = recipes.recipe_variants(config)
    assert variants["equilibrium"] == config
    assert variants["implicit, no penalty"] == {**config, "jacobian_penalty": 0.0}


def test_memory_table():
    rows = [
        {"depth": 0, "bytes": 2**20, "seconds": 1.0},
        {"depth": 12, "bytes": 5 * 2**20, "seconds": 2.5},
    ]
    table = memory_table(rows)
    assert "| the equilibrium | 1 | 1.0 | 1.00 | 1.00 |" in table
    assert "| 12 applications | 5 | 5.0 | 2.50 | 2.50 |" in table


def test_suites_name_presets_that_are_there():
    for each in SUITES.values():
        for settings in each.runs.values():
            if "flagfile" in settings:
                with open(settings["flagfile"], encoding="utf-8") as file:
                    assert file.readline().startswith("#")
