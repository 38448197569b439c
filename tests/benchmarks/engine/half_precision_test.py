"""Tests of benchmarks.engine.half_precision: the lowest residual, and the end of a solve there."""

import pytest

from benchmarks.engine import half_precision


# Half a unit in the last place of the cell's images, 2⁻¹² and 2⁻⁹, times a factor for the state's
# norm.
@pytest.mark.slow
@pytest.mark.parametrize(("policy", "floor"), [("mixed_float16", 1e-3), ("mixed_bfloat16", 8e-3)])
@pytest.mark.parametrize("solver", ["fixed_point_iteration", "anderson", "broyden"])
def test_with_patience_it_stagnates_at_the_floor(policy, floor, solver):
    for row in half_precision.measure(policy, solver, width=16, length=8, patience=12).values():
        assert row["residual"] < floor
        # Rounded images can repeat exactly; then even this tolerance is met.
        assert set(row["status"]) <= {"STAGNATED", "CONVERGED"}
        assert row["steps"] < half_precision.BUDGET


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "floor"), [("mixed_float16", 1e-3), ("mixed_bfloat16", 8e-3)])
@pytest.mark.parametrize("solver", ["fixed_point_iteration", "anderson"])
def test_without_it_spends_its_budget_there(policy, floor, solver):
    """The solver's float32 state does not show that the cell's precision is lower."""
    row = half_precision.measure(policy, solver, width=16, length=8)["Transformer"]
    assert row["residual"] < floor
    assert "MAX_STEPS" in row["status"]
    assert row["steps"] == half_precision.BUDGET
