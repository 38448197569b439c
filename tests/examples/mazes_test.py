"""The example of mazes."""

import pytest

from tests.support.run_example import run_example


@pytest.mark.slow
def test_mazes_larger_than_in_training_are_solved(tmp_path):
    result = run_example("examples.mazes", tmp_path)
    solved, explicit = result["equilibrium"], result["explicit"]
    # Of 50 mazes. So short a training solves 28 to 62 % of the largest, as rounding decides.
    assert solved["9"] >= 0.96
    assert solved["15"] >= 0.8
    assert solved["33"] >= 0.2
    assert (
        explicit["9"] >= 0.3
    )  # the other network, whose thread would fail in silence, was trained too
    for size in solved:
        assert solved[size] > explicit[size]
