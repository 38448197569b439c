"""Tests of benchmarks.engine.gradient_rules: approximations improve with steps, the rest is exact."""

import itertools

import pytest

from benchmarks.engine import gradient_rules

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report():
    return gradient_rules.measure(units=8, batch=3)


@pytest.mark.parametrize("name", ["PhantomGradient", "Unrolled", "Shine", "Implicit"])
def test_the_cosine_grows_with_the_steps_to_one(report, name):
    errors = [
        1 - row.weights_cosine
        for key, row in report.items()
        if key.startswith(name) and "damping 0.5" not in key
    ]
    assert len(errors) >= 4
    # Rounding error of a cosine close to one.
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 1e-6


def test_exact_rules_and_the_crudest(report):
    for name in ("Implicit, to 1e-10", "ReversibleBackprop"):
        assert report[name].weights_cosine > 1 - 1e-9
        assert report[name].weights_norm_ratio == pytest.approx(1.0, abs=1e-6)
    assert 0.5 < report["JacobianFree"].weights_cosine < 0.9999
    text = gradient_rules.table(report)
    assert len(text.splitlines()) == len(report) + 2
