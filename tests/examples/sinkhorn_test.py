"""The example of optimal transport as a layer."""

import pytest

from tests.support.run_example import run_example


@pytest.mark.slow
def test_transport_finds_the_partners(tmp_path):
    result = run_example("examples.sinkhorn", tmp_path)
    # Central differences in float64 with a step of 5e-6 are exact to about 1e-9.
    assert result["finite"] < 1e-6
    # The gradient of 500 iterations lacks what is left after them: 0.98^500 = 4e-5 at a rate of 0.98.
    assert result["unrolled"] < 1e-3
    # Two features out of eight agree; with equal weights six of noise outweigh them.
    assert result["untrained"] < 0.7
    assert result["right"] > 0.9
    # 100 iterations keep at least two matrices [4, 256, 256] of float32 each: 200 MiB.
    assert result["unrolled mib"] > 150
    assert result["mib"] < result["unrolled mib"] / 2
