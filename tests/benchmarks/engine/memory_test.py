import sys
import types

import numpy as np
import pytest

from benchmarks.engine import engine_cases, memory


@pytest.fixture(autouse=True)
def parsed_flags(tmp_path, monkeypatch):
    values = types.SimpleNamespace(
        workdir=str(tmp_path),
        peers_python=None,
        threads=1,
        layers=["1", "60"],
        budgets=["10", "60"],
    )
    monkeypatch.setattr(memory, "FLAGS", values)
    return values


def test_points_with_and_without_the_peers(parsed_flags):
    parsed_flags.peers_python = None
    points = memory.variants()
    assert ("explicit layers", "tfdeq", "explicit", 60) in points
    assert ("tfdeq fixed_point_iteration", "tfdeq", "fixed_point_iteration", 10) in points
    assert {worker for _, worker, _, _ in points} == {"tfdeq"}
    parsed_flags.peers_python = "python"
    assert ("TorchDEQ broyden", "TorchDEQ", "broyden", 60) in memory.variants()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_point_is_measured_in_a_process_of_its_own(tmp_path):
    case = {"kind": "dense", "shape": [2048, 64], "gain": 0.5}
    arrays = str(tmp_path / "case.npz")
    np.savez(arrays, **engine_cases.make_arrays(case))
    peak = memory.measure("tfdeq", "explicit", 40, arrays, case)
    # Each of 40 layers keeps its state of 512 KiB for the backward pass.
    assert 15 * 2**20 < peak < 200 * 2**20
