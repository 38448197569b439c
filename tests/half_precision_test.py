"""Tests of benchmarks.half_precision: a solve ends at the floor of its cell's precision, and says so."""

import pytest

from benchmarks import half_precision


# Half a unit in the last place of the cell's images, 2⁻¹² and 2⁻⁹, times what the state's norm gathers.
@pytest.mark.slow
@pytest.mark.parametrize(("policy", "floor"), [("mixed_float16", 1e-3), ("mixed_bfloat16", 8e-3)])
@pytest.mark.parametrize("solver", ["fixed_point_iteration", "anderson", "broyden"])
def test_it_stagnates_at_the_floor_instead_of_spending_its_budget(policy, floor, solver):
    for row in half_precision.measure(policy, solver, width=16, length=8).values():
        assert row["residual"] < floor
        # Rounded images can repeat exactly; then even this tolerance is met.
        assert set(row["status"]) <= {"STAGNATED", "CONVERGED"}
        assert row["steps"] < half_precision.BUDGET
