"""The results page of pictures, made from stored figures."""

import json

import pytest

from benchmarks.images import document

BUDGETS = {
    "0.5": {"accuracy": 0.97, "residual": 2e-2, "steps": 10.0},
    "1.0": {"accuracy": 0.99, "residual": 1e-3, "steps": 15.25},
}
METRICS = {
    "config": {"train_steps": 600, "max_steps": 20},
    "parameters": 54321,
    "score": {"name": "accuracy", "lower_is_better": False},
    "train": {"seconds_per_step": 0.5, "kept_step": 500},
    "test": {**BUDGETS["1.0"], "standard_error": 0.001, "by_budget": BUDGETS},
}
CERTIFIED = {
    "pictures": 1000, "accuracy": 0.985, "median_radius": 0.31, "tolerance": 1e-5, "attack_steps": 100,
    "restarts": 10, "certified": {"0.1": 0.9, "1": 0.0}, "attacked": {"0.1": 0.96, "1": 0.25},
    "attacks_inside_the_radius": 0,
}  # fmt: skip


def test_a_page_without_runs_names_the_commands(tmp_path):
    text = document.document(str(tmp_path))
    assert text.count("Not run yet.") == len(document.RUNS)
    assert "`python -m trainers.segmentation --workdir=runs/shapes`" in text


def test_runs_are_kept_and_shown(tmp_path):
    run = tmp_path / "mnist_monotone"
    run.mkdir()
    with pytest.raises(FileNotFoundError, match="has not finished"):
        document.keep(str(run), str(tmp_path))
    with pytest.raises(ValueError, match="mnist_monotone, .* received .*other"):
        document.keep(str(tmp_path / "other"), str(tmp_path))
    (run / "metrics.json").write_text(json.dumps(METRICS))
    document.keep_all([str(run)], str(tmp_path))
    text = document.document(str(tmp_path))
    assert "| 54,321 | 600 | 5 | accuracy **99.00 %** ± 0.10 | 1.0e-03 | 15.2 |" in text
    assert "| 0.5 × | 97.00 % | 2.0e-02 | 10.0 |" in text
    assert "Certificates" not in text
    (run / "certified.json").write_text(json.dumps(CERTIFIED))
    document.keep_all([str(run)], str(tmp_path))
    text = document.document(str(tmp_path))
    assert "| 0.1 | 90.0 % | 96.0 % |" in text
    assert "they altered 0 answers" in text


def test_explicit_layers_have_no_budget(tmp_path):
    test = {"accuracy": 0.9, "by_budget": {"1.0": {"accuracy": 0.9}}}
    run = tmp_path / "fashion_residual_network"
    run.mkdir()
    (run / "metrics.json").write_text(json.dumps({**METRICS, "test": test}))
    document.keep_all([str(run)], str(tmp_path))
    assert "| accuracy **90.00 %** |  |  |" in document.document(str(tmp_path))
