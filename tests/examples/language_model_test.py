"""The example of a language model from a preset."""

import pytest

from tests.support.run_example import run_example


@pytest.mark.slow
def test_quality_follows_the_budget(tmp_path):
    result = run_example("examples.language_model", tmp_path)
    bits, residuals = result["bits"], result["residuals"]
    # The preset has 1.745 on the whole test text. Here are 8,192 of its 500,000 bytes: a standard error
    # of 0.009 · (500 / 8.2)^(1/2) = 0.07; and another version of Python has another text.
    assert abs(bits[-1] - 1.745) < 0.3
    assert bits[0] > bits[3] > bits[-1] - 0.02
    assert residuals[0] > 10 * residuals[-1]
    # float32 sums over a vocabulary, in another order.
    assert result["difference"] < 1e-3
