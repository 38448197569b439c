"""The table of LiteRT: what is compared is what the page says."""

import keras
import numpy as np
import pytest

from benchmarks.serving import litert
from tfdeq import solvers


@pytest.mark.slow
def test_a_pair_is_compared(tmp_path):
    make, shape = litert.CELLS["DenseCell"]
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    found = litert._compared(make(), "fixed_point_iteration", x, tmp_path)
    assert 0 <= found["difference"] < 1e-5
    assert 0 < found["floor"] < 1e-6
    assert found["same_steps"]
    assert litert._compared(make(), "peaceman_rachford", x, tmp_path) == {"inapplicable": True}


def test_a_page_says_what_was_found():
    pair = {"difference": 2e-7, "floor": 3e-8, "same_steps": False}
    row = {"cell": "DenseCell", **dict.fromkeys(litert.SOLVERS, pair)}
    row["reversible"], row["peaceman_rachford"] = {"refused": "IRFFT2D"}, {"inapplicable": True}
    timed = {
        **{
            "model": "dense",
            "precision": "float16",
            "bytes": 720_000,
            "difference": 3e-3,
            "steps": 8,
        },
        **{"litert": [2.0, 1.0, 3.0], "tensorflow": [4.0, 3.0, 9.0]},
    }
    page = litert.document({"processor": "P", "rounds": 5, "grid": [row], "times": [timed]})
    assert "| DenseCell | 2e-07 / 3e-08, steps |" in page
    assert "| not in LiteRT |" in page
    assert "| – |" in page
    line = "| dense | float16 | 0.72 MB | 8 | 2.00 (1.00–3.00) | 4.00 (3.00–9.00) | 0.50 | 3e-03 |"
    assert line in page


@pytest.mark.slow
def test_every_cell_is_named_and_every_solver_is_asked(tmp_path):
    rows = litert.grid(tmp_path, ["MonotoneDense"])
    assert set(rows[0]) == {"cell", *litert.SOLVERS}
    assert set(litert.SOLVERS) == set(solvers.REGISTRY) - {"gmres"}
