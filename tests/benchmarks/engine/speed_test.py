import types

import numpy as np
import pytest

from benchmarks.engine import speed
from tfdeq.programs.workdir import read_json

REFERENCE = {"z": np.array([3.0, 4.0]), "d/W": np.array([[1.0]])}


@pytest.fixture
def parsed_flags(monkeypatch):
    values = types.SimpleNamespace(
        quick=True, cases=["dense"], peers_python=None, threads=1, rounds=1, turn=0.0, slow=60.0
    )
    monkeypatch.setattr(speed, "FLAGS", values)
    return values


def test_the_largest_difference_is_relative_and_over_all_outputs():
    assert speed.largest_difference(REFERENCE, REFERENCE) == 0.0
    other = {"z": np.array([3.0, 4.5]), "d/W": np.array([[1.2]]), "loss": np.array(9.0)}
    assert speed.largest_difference(other, REFERENCE) == pytest.approx(0.2)


def test_disagreement_is_named_and_ends_the_run():
    speed.check_agreement({"TorchDEQ": 1e-5, "JAX": 2e-5})
    with pytest.raises(ValueError, match=r"JAX: 2\.0e-02.*Nothing was timed"):
        speed.check_agreement({"TorchDEQ": 1e-5, "JAX": 2e-2})
    with pytest.raises(ValueError, match="TorchDEQ: nan"):
        speed.check_agreement({"TorchDEQ": float("nan")})


def test_variants_of_both_modes():
    fixed = speed.variant("anderson", "fixed")
    assert (fixed["forward_steps"], fixed["backward_steps"], fixed["tolerance"]) == (20, 20, None)
    assert speed.variant("anderson", "tolerance")["tolerance"] == 1e-3
    assert speed.variant("bound", "fixed", 7, 9)["forward_steps"] == 7


@pytest.mark.slow
def test_a_small_run_of_tfdeq_alone(parsed_flags, tmp_path):
    """The real chain in subprocesses, without the peers: rows, counts and times of every variant."""
    speed.run_cases(str(tmp_path), str(tmp_path / "results"))
    result = read_json(tmp_path / "results" / "dense.json")
    assert set(result["missing"]) == {"TorchDEQ", "JAX"}
    assert (
        len(result["rows"]) == 16
    )  # three solvers and the bound, in two modes, with and without XLA
    for row in result["rows"]:
        assert "error" not in row
        assert row["median_seconds"] > 0
        if row["mode"] == "fixed":
            # 20, and one or two linearisations at the equilibrium.
            assert row["evaluations"] in (21, 22)
            assert row["products"] == 20
            assert row["gradient_error"] < 1e-2
        elif not row["solver"].startswith("bound"):
            assert max(row["forward_residual"], row["backward_residual"]) < 1.01e-3
            assert row["evaluations"] < 42
    speed.engine_report.write(str(tmp_path / "benchmarks.md"), {"dense": result}, None)
    assert "not run: no --peers_python" in (tmp_path / "benchmarks.md").read_text()
