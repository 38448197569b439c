"""Runs only where the peers are installed, as in the environment of `make bench`."""

import numpy as np
import pytest

from benchmarks.engine import engine_cases

pytest.importorskip("jaxopt")
pytest.importorskip("optimistix")
from benchmarks.engine.peers import jax_worker


def test_fixed_steps_are_all_made(tmp_path, monkeypatch):
    monkeypatch.setattr(jax_worker.protocol, "threads", lambda: 1)
    case = engine_cases.QUICK_CASES["dense"]
    np.savez(tmp_path / "case.npz", **engine_cases.make_arrays(case))
    worker = jax_worker.JaxWorker()
    worker.do_prepare(str(tmp_path / "case.npz"), case["kind"])
    for solver, modes in worker.solvers.items():
        if "fixed" in modes:
            variant = {
                "solver": solver,
                "forward_steps": 12,
                "backward_steps": 11,
                "tolerance": None,
            }
            evaluations, products = worker.count(variant)
            assert 12 <= evaluations <= 15
            assert 11 <= products <= 13
