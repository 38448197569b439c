import numpy as np
import pytest

from benchmarks.engine import engine_cases, speed
from benchmarks.engine.peers import tfdeq_worker


def _worker(case, tmp_path, monkeypatch):
    monkeypatch.setattr(tfdeq_worker.protocol, "threads", lambda: 1)
    monkeypatch.setattr(
        tfdeq_worker.tf.config.threading, "set_intra_op_parallelism_threads", lambda _: None
    )
    worker = tfdeq_worker.TfdeqWorker()
    np.savez(tmp_path / "case.npz", **engine_cases.make_arrays(case))
    worker.do_prepare(str(tmp_path / "case.npz"), case["kind"], case.get("heads"))
    return worker


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "dense", "convolution"])
def test_bound_and_explicit_layers_give_the_implicit_gradient(name, tmp_path, monkeypatch):
    """The same gradient in three ways: implicitly, by the bound's own loop, and by backpropagation."""
    case = {**engine_cases.QUICK_CASES[name], "gain": 0.4}
    worker = _worker(case, tmp_path, monkeypatch)
    outputs = {
        solver: worker.probe(speed.variant(solver, "fixed", 60, 60))
        for solver in ("anderson", "bound", "explicit")
    }
    outputs["explicit"].pop("u")  # with respect to every layer's e, not only the last one's
    assert max(worker.residuals(outputs["bound"]["z"], outputs["bound"]["u"])) < 1e-5
    assert speed.largest_difference(outputs["anderson"], outputs["bound"]) < 1e-4
    assert speed.largest_difference(outputs["bound"], outputs["explicit"]) < 1e-4


@pytest.mark.slow
def test_counts_are_those_of_the_cell_itself(tmp_path, monkeypatch):
    worker = _worker(engine_cases.QUICK_CASES["dense"], tmp_path, monkeypatch)
    # One evaluation serves both linearisations of the bound; tfdeq makes two.
    assert worker.count(speed.variant("bound", "fixed", 7, 5)) == (8, 5)
    assert worker.count(speed.variant("broyden", "fixed", 7, 5)) == (9, 5)
    # The start of explicit layers gets no gradient, so there is one product fewer than layers.
    assert worker.count(speed.variant("explicit", "fixed", 7, 5)) == (7, 6)
