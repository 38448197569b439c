"""The example of a cell of one's own."""

import pytest

from tests.support.run_example import run_example


@pytest.mark.slow
def test_it_finds_the_responses_behind_the_equilibria(tmp_path):
    result = run_example("examples.custom_cell", tmp_path)
    # The data have no noise, so G and the answers are limited by the optimiser only; entries of G are
    # up to 0.5.
    assert result["g"] < 0.05
    assert result["same"] < 0.02
    # It has the right form, so conditions that are four times as large make it no worse; a network
    # without this form cannot know what is outside its data.
    assert result["larger"] < 0.02
    assert result["larger"] < result["larger, network"]
