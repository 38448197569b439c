"""The benchmark of rods: exact temperatures, and every model trains and is measured."""

import numpy as np
import pytest

from benchmarks.training import rods


def test_temperatures_are_those_of_the_equation():
    x, y = rods.rods(3, 20, seed=0)
    u = 5 * y[..., 0].astype("float64")
    cooled, heated = x[..., 0], x[..., 1]
    neighbours = np.pad(u, [[0, 0], [1, 0]])[:, :-1] + np.pad(u, [[0, 0], [0, 1]])[:, 1:]
    np.testing.assert_allclose(u, np.where(cooled, 0, rods.KEPT * neighbours + heated), atol=1e-5)
    assert x.sum(-1).max() == 1  # no place is both
    assert y.max() > 0


def test_a_filter_that_spreads_too_much_is_scaled():
    w = np.array([[1.0, 0.1], [-1.0, 0.2], [2.0, 0.3]], np.float32)[:, :, None]
    found = rods.Contraction()(w)
    np.testing.assert_allclose(np.abs(found).sum(0)[:, 0], [0.999, 0.6], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", rods.MODELS)
def test_every_model_is_measured(name):
    rows = rods.measure(name, count=32, rates=[0.01], seeds=[0], epochs=1)
    assert len(rows) == (3 if name == "equilibrium" else 1)
    assert all(np.isfinite(row["near"] + row["far"]).all() for row in rows)
    assert name in rods.table(rows)
