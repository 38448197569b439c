"""The example of prefix sums."""

import pytest

from tests.support.run_example import run_example


@pytest.mark.slow
def test_strings_longer_than_in_training_are_solved(tmp_path):
    result = run_example("examples.prefix_sums", tmp_path)
    # One wrong string of 20 is allowed: training is short.
    for length in ("32", "512", "2048"):
        assert result["equilibrium"][length] >= 0.95, length
    # The convolutional network sees 126 positions on both sides, so it guesses at the end of longer
    # strings.
    assert result["explicit"]["2048"] == 0
