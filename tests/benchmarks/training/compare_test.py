"""Tests of benchmarks.training.compare: the variants, their steps, and finished runs."""

import types

import pytest
from absl import flags

from benchmarks.results.tables import comparison_table
from benchmarks.training import compare, equal_time
from benchmarks.training.equal_time import Comparison
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
        return types.SimpleNamespace(present=False, value=getattr(self, name, None))


def _comparison(folder):
    return Comparison("trainers.language_model", str(folder), 1, {}, {"test_windows": 1})


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
    # With recurrent weights of zero, the penalty would have no effect.
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
    made = _comparison(tmp_path)
    for name in runs:
        for seed, bits in enumerate((1.5, 1.7)):
            test = {"bits_per_byte": bits, "residual": 1e-3}
            train = {"peak_memory_mib": 900.0 + seed}
            metrics = {"config": runs[name], "test": test, "train": train}
            write_json(f"{made.folder(name, 0.006, seed)}/metrics.json", metrics)
    seconds = {"equilibrium": 0.4, "1 explicit": 0.2}
    results = compare.rows(made.compared(runs, seconds, seeds=2))
    assert results["equilibrium"]["mean_bits"] == pytest.approx(1.6)
    assert results["equilibrium"]["seconds"] == pytest.approx(40.0)
    text = comparison_table(results)
    assert "| equilibrium | 0.006 | 100 | 0.400 | 40 | **1.600** (1.500, 1.700) |" in text
    compare.draw(results, str(tmp_path / "compare.png"))
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_variants_are_refused_and_others_keep_their_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "configuration", lambda names: dict(CONFIG))
    known = Flags(
        rivals="depths", depths=["1"], only=["2 explicit"], workdir=str(tmp_path), seeds=1,
        equal="steps", report_only=True, results=None, document=None, record=None,
        learning_rates=["0.004"], search_share=0.25, parallel=1, prepared_dir=None, tpu="",
        keep_freed_memory=True,
    )  # fmt: skip
    monkeypatch.setattr(compare, "FLAGS", known)
    monkeypatch.setattr(equal_time, "FLAGS", known)
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
        write_json(f"{_comparison(tmp_path).folder(name, 0.004, 0)}/metrics.json", metrics)
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
