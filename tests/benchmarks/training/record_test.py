"""Tests of benchmarks.training.record."""

import json

from benchmarks.training import record


def write(folder, value):
    folder.mkdir(parents=True)
    config = {"train_steps": 5, "seed": 0}
    metrics = {
        "config": config,
        "score": {"name": "bits"},
        "train": {"best": {"score": value}, "peak_memory_mib": 3.0, "loss": [1.0] * 9},
        "test": {
            "bits": value,
            "residual": 0.1,
            "by_budget": {"1.0": {"bits": value, "trace": [1.0]}},
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.json").write_text(json.dumps(config))


def test_another_folder_goes_on_from_the_record(tmp_path):
    one, other, path = tmp_path / "one", tmp_path / "other", str(tmp_path / "record.json")
    write(one / "a_seed_0", 1.5)
    write(one / "search" / "a_rate_0.1_seed_0", 2.5)
    (one / "seconds_per_step.json").write_text(json.dumps({"a": 0.5}))
    record.pack(path, str(one))
    write(other / "a_seed_0", 7.0)  # its own run is kept
    record.unpack(path, str(other))
    found = json.loads((other / "search" / "a_rate_0.1_seed_0" / "metrics.json").read_text())
    assert found["test"] == {"bits": 2.5, "residual": 0.1, "by_budget": {"1.0": {"bits": 2.5}}}
    assert found["train"]["best"] == {"score": 2.5}
    assert json.loads((other / "a_seed_0" / "metrics.json").read_text())["test"]["bits"] == 7.0
    assert json.loads((other / "seconds_per_step.json").read_text()) == {"a": 0.5}
    write(other / "b_seed_0", 3.5)
    record.pack(path, str(other))
    assert len(json.loads((tmp_path / "record.json").read_text())["runs"]) == 3


def test_nothing_is_there_at_first(tmp_path):
    record.unpack(str(tmp_path / "none.json"), str(tmp_path / "workdir"))
    assert not (tmp_path / "workdir").exists()
