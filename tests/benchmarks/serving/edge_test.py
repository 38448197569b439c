"""The table of runtimes for devices: what is compared is what the page says."""

import keras
import numpy as np
import pytest

from benchmarks.serving import edge
from tfdeq import solvers


@pytest.mark.slow
def test_a_pair_is_compared(tmp_path):
    make, shape = edge.CELLS["DenseCell"]
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    found = edge._compared(make(), "fixed_point_iteration", x, tmp_path)
    assert set(found) == {"litert", "onnx"}
    for one in found.values():
        assert 0 <= one["difference"] < 1e-5
        assert 0 < one["floor"] < 1e-6
        assert one["same_steps"]
    other = edge._compared(make(), "peaceman_rachford", x, tmp_path)
    assert other["onnx"] == {"inapplicable": True}


def test_a_page_says_what_was_found():
    pair = {"difference": 2e-7, "floor": 3e-8, "same_steps": False}
    both = {"litert": pair, "onnx": {**pair, "same_steps": True}}
    row = {"cell": "DenseCell", **dict.fromkeys(edge.SOLVERS, both)}
    row["reversible"] = {"litert": {"refused": "IRFFT2D"}, "onnx": {"refused": "IRFFT2D"}}
    row["peaceman_rachford"] = {format: {"inapplicable": True} for format in both}
    timed = {
        **{
            "model": "dense",
            "format": "litert",
            "precision": "float16",
            "bytes": 720_000,
            "difference": 3e-3,
            "steps": 8,
        },
        **{"converted": [2.0, 1.0, 3.0], "tensorflow": [4.0, 3.0, 9.0]},
    }
    page = edge.document({"processor": "P", "rounds": 5, "grid": [row], "times": [timed]})
    assert "| DenseCell | 2e-07 / 3e-08, steps |" in page
    assert "| DenseCell | 2e-07 / 3e-08 |" in page
    assert "| no |" in page
    assert "| – |" in page
    line = "| dense | LiteRT | float16 | 0.72 MB | 8 | 2.00 (1.00–3.00) | 4.00 (3.00–9.00) | 0.50 | 3e-03 |"
    assert line in page


@pytest.mark.slow
def test_every_cell_is_named_and_every_solver_is_asked(tmp_path):
    rows = edge.grid(tmp_path, ["MonotoneDense"])
    assert set(rows[0]) == {"cell", *edge.SOLVERS}
    assert set(edge.SOLVERS) == set(solvers.REGISTRY) - {"gmres"}
