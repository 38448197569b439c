import re

import pytest

from benchmarks.engine import engine_report


def _row(worker, solver, mode="fixed", seconds=1.0, residual=5e-4, products=20):
    return {
        "worker": worker,
        "solver": solver,
        "mode": mode,
        "evaluations": 22,
        "products": products,
        "forward_residual": residual,
        "backward_residual": 1e-4,
        "gradient_error": 2e-4,
        "seconds": [seconds],
        "median_seconds": seconds,
    }


ROWS = [
    _row("tfdeq", "anderson", seconds=0.3),
    _row("tfdeq", "bound", seconds=0.2),
    _row("TorchDEQ", "broyden", seconds=0.9),
    _row("JAX", "Optimistix newton, gmres", "tolerance", seconds=0.5),
    _row("TorchDEQ", "anderson", "tolerance", seconds=0.1, residual=5e-3),
    _row("TorchDEQ", "broyden", "tolerance", seconds=0.8, products=12),
    _row("tfdeq", "broyden", "tolerance", seconds=0.4, products=12),
    _row("tfdeq", "anderson", "tolerance", seconds=0.5, products=9),
    {"worker": "JAX", "solver": "JAXopt broyden", "mode": "fixed", "error": "no | memory"},
]
RESULT = {
    "quick": False,
    "threads": 2,
    "rounds": 3,
    "processor": "a processor",
    "versions": {"tfdeq": "0.1"},
    "missing": {"Other": "not run: No module named 'other'"},
    "description": "dense cell",
    "agreement": {"TorchDEQ": 1e-6},
    "rows": ROWS,
}
MEMORY = {
    "description": "dense cell",
    "explanation": "How it was measured.",
    "rows": [
        {"name": "explicit layers", "steps": 1, "bytes": 2**20},
        {"name": "explicit layers", "steps": 60, "bytes": 60 * 2**20},
        {"name": "tfdeq fixed_point_iteration", "steps": 30, "bytes": 3 * 2**20},
        {"name": "TorchDEQ broyden", "steps": 30, "error": "killed"},
    ],
}


def test_a_table_has_every_row_the_fastest_first():
    text = engine_report.table(RESULT, "fixed")
    rows = text.splitlines()[2:]
    assert rows[0].startswith("| lower bound | 0.2 (0.2) | 1.00 | 22 + 20 |")
    assert rows[1].startswith("| **tfdeq anderson** | 0.3 (0.3) | 1.50 |")
    assert rows[2].startswith("| TorchDEQ broyden | 0.9 (0.9) | 4.50 |")
    assert rows[3] == "| JAXopt broyden | failed: no / memory | – | – | – | – |"
    assert rows[4].startswith("| Other | not run:")
    assert len({row.count("|") for row in rows}) == 1  # no empty or broken cells


def test_a_missed_tolerance_is_marked_and_wins_nothing():
    assert "| TorchDEQ anderson † | 0.1 (0.1) |" in engine_report.table(RESULT, "tolerance")
    summary = engine_report.summary({"dense": RESULT}).splitlines()
    # tfdeq's broyden against TorchDEQ's broyden, not its faster anderson, which missed the
    # tolerance.
    assert summary[-1].endswith("| broyden | 0.4 | – | 0.50 | – | 0.80 |")


def test_the_fewest_evaluations_are_those_of_a_run_that_arrived():
    assert engine_report.fewest_evaluations(ROWS, "tfdeq")["solver"] == "anderson"
    assert engine_report.fewest_evaluations(ROWS, "TorchDEQ")["solver"] == "broyden"
    assert engine_report.fewest_evaluations(ROWS[:3], "tfdeq") is None


@pytest.mark.parametrize("memory", [MEMORY, None])
def test_the_document_names_its_plots(tmp_path, memory):
    engine_report.write(str(tmp_path / "docs" / "speed.md"), {"dense": RESULT}, memory)
    text = (tmp_path / "docs" / "speed.md").read_text()
    plots = {path.name for path in (tmp_path / "docs").glob("*.png")}
    assert plots == {"speed_fixed.png", "speed_tolerance.png"} | (
        {"speed_memory.png"} if memory else set()
    )
    assert all(re.search(rf"!\[\w[^]]+\]\({name}\)", text) for name in plots)
    if memory:
        assert "| explicit layers | 60 | 60.0 |" in text
        assert "| TorchDEQ broyden | 30 | failed: killed |" in text
