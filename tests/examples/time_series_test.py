"""The example of a recurrent network that is solved for all points at once."""

import pytest

from tests.support.run_example import run_example


@pytest.mark.slow
def test_a_recurrence_is_solved_and_learned(tmp_path):
    result = run_example("examples.time_series", tmp_path)
    # A relative residual of 1e-6, of states between -1 and 1, times what the unit remembers of an error.
    assert result["apart"] < 1e-3
    # A twentieth of the points; with the weights of the example it is about a fiftieth.
    assert result["evaluations"] < 6000 / 20
    # The noise that it has to average out has 0.1; "predict 0" has an error of 1.
    assert result["errors"][0] < 0.1
    # With a rate of nearly 0, the last solve starts at its own answer.
    assert result["last"] <= 3
