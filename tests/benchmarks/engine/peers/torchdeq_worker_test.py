"""Runs only where the peers are installed, as in the environment of `make bench`."""

import numpy as np
import pytest

from benchmarks.engine import engine_cases

pytest.importorskip("torchdeq")

from benchmarks.engine.peers import torchdeq_worker


def test_fixed_steps_are_all_made(tmp_path, monkeypatch):
    monkeypatch.setattr(torchdeq_worker.protocol, "threads", lambda: 1)
    case = engine_cases.QUICK_CASES["dense"]
    np.savez(tmp_path / "case.npz", **engine_cases.make_arrays(case))
    worker = torchdeq_worker.TorchdeqWorker()
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
