"""The real program on short copy memory: a dry run, and learning."""

import json
import subprocess
import sys

import pytest


def run(*arguments):
    result = subprocess.run(
        [sys.executable, "-m", "trainers.copy_memory", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_papers_size_has_at_most_14_thousand_parameters(tmp_path):
    output = run(f"--workdir={tmp_path / 'none'}", "--dry_run", "--nojit_compile", "--batch_size=2")
    parameters = int(output.split("Parameters: ")[1].split()[0].replace(",", ""))
    assert parameters <= 14000
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_learns_that_most_positions_are_blank(tmp_path):
    output = run(
        f"--workdir={tmp_path}",
        "--sequence_length=10",
        "--train_steps=60",
        "--learning_rate=1e-2",
        "--warmup_share=0.08",
        "--width=16",
        "--heads=2",
        "--evaluate_every=60",
        "--inspect_every=0",
        "--nojit_compile",
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "test: loss" in output
    # A uniform guess has ln 10 = 2.3; a third of the positions at ln 8, 0.69, is everything except
    # the symbols.
    assert metrics["test"]["loss"] < 0.75
    assert set(metrics["test"]["by_budget"]) == {"0.5", "1.0", "2.0", "4.0"}
