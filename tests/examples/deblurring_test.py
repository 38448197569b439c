"""The example of a learned denoiser at equilibrium."""

import pytest

from tests.support.run_example import run_example


@pytest.mark.slow
def test_pictures_become_sharper_than_by_total_variation(tmp_path):
    result = run_example("examples.deblurring", tmp_path)
    assert result["equilibrium"] > result["blurred"] + 5  # decibels
    assert result["equilibrium"] > result["total variation"]
    assert result["residual"] < 1e-3
    # What was unrolled for five steps is no equilibrium.
    assert result["longer"] < result["unrolled"] - 1
