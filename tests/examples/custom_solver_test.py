"""The example of a solver of one's own."""

import pytest

from tests.support.run_example import run_example


@pytest.mark.slow
def test_it_needs_fewer_evaluations_than_the_classical_method(tmp_path):
    result = run_example("examples.custom_solver", tmp_path)
    # Plain iteration takes 636. A method that gains from curvature takes about its square root times a
    # small factor: sqrt((1 + d) / (1 - d)) = 14 per factor e of accuracy.
    assert result["Barzilai-Borwein"] < result["plain iteration"] / 4
    assert result["plain iteration"] > 300
    # Central differences with h = 1e-6 in float64 are exact to about 1e-9 of a derivative of order 1.
    assert result["derivative"] == pytest.approx(result["difference"], rel=1e-4)
