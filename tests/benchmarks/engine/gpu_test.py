"""Tests of benchmarks.engine.gpu: it measures a device that is there, and refuses one that is missing."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks.engine import gpu

ROOT = pathlib.Path(__file__).absolute().parents[3]
PAGE = ROOT / "docs" / "gpu_benchmarks.md"


def _run(*flags):
    command = [sys.executable, "-m", "benchmarks.engine.gpu", "--quick", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_a_case_is_measured_and_written(tmp_path):
    results, page = tmp_path / "gpu.json", tmp_path / "gpu.md"
    finished = _run(
        *("--device=CPU:0", "--cases=dense,convolution", "--rounds=2", "--minutes=0.01"),
        "--solvers=anderson",
        *(f"--results={results}", f"--document={page}"),
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    found = json.loads(results.read_text())
    rows = {row["variant"]: row for row in found["cases"]["dense"]}
    assert set(rows) == {"bound", "bound, graph", "anderson"}
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows.values())
    # Nothing that a CPU knows nothing of is made up, and a case that had no time says so.
    assert all(row["peak_bytes"] is None for row in rows.values())
    assert found["cases"]["convolution"] is None
    text = page.read_text()
    assert "| **tfdeq anderson** |" in text
    assert text.endswith("Run the program again with `--cases`.\n")


@pytest.mark.slow
def test_a_device_that_is_missing_is_named():
    finished = _run("--device=GPU:7")
    assert finished.returncode == 1
    assert "There is no device 'GPU:7'; TensorFlow sees" in finished.stderr


def test_the_page_is_what_the_program_writes():
    """Until it is run, the page says so."""
    results = ROOT / "benchmarks" / "results" / "gpu.json"
    known = json.loads(results.read_text()) if results.exists() else None
    assert PAGE.read_text() == gpu.document(known)
