"""Tests of benchmarks.engine.solver_curves, at a small size that only shows that it works."""

import pytest

from benchmarks.engine import engine_cases, solver_curves


@pytest.mark.slow
def test_curves_plots_and_table(tmp_path):
    curves = solver_curves.measure(engine_cases.QUICK_CASES["transformer"], most=12, rounds=1)
    assert set(curves) == set(solver_curves.STYLES)
    for curve in curves.values():
        assert curve["evaluations"] == list(range(1, 13))
        assert curve["residual"][-1] < 0.1 * curve["residual"][0]
    solver_curves.draw(curves, "seconds", "seconds", str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    text = solver_curves.table(
        {"broyden": {"evaluations": [1, 2], "residual": [0.5, 0.01], "seconds": [0.1, 0.2]}},
        [0.1, 0.001],
    )
    assert text.splitlines()[2] == "| broyden | 2, 200 ms | – |"
