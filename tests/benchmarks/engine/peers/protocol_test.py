import sys

import numpy as np
import pytest

from benchmarks.engine.peers import protocol
from tools import build_files


class Halving(protocol.Worker):
    """f(z) = z / 2 + x, whose z* is 2 x and whose u is 2 ∂L/∂z."""

    name = "halving"

    def __init__(self):
        super().__init__()
        self.built = 0

    def load(self):
        self.x = self.arrays["x"]

    def build(self, variant):
        self.built += 1
        return lambda: None

    def probe(self, variant):
        z = 2 * self.x
        return {"z": z, "u": 2 * (z - self.arrays["target"])}

    def count(self, variant):
        return variant["forward_steps"], variant["backward_steps"]

    def image_and_product(self, z, u):
        return z / 2 + self.x, u / 2


VARIANT = {"solver": "exact", "forward_steps": 3, "backward_steps": 4, "tolerance": None}


@pytest.fixture
def worker(tmp_path):
    result = Halving()
    x = np.array([[1.0, 2.0], [3.0, 4.0]], "float32")
    np.savez(tmp_path / "case.npz", x=x, target=np.ones_like(x))
    result.do_prepare(str(tmp_path / "case.npz"), "dense")
    return result


def test_outputs_carry_counts_and_residuals(worker, tmp_path):
    answer = worker.do_outputs(VARIANT, str(tmp_path / "outputs.npz"))
    assert (answer["evaluations"], answer["products"]) == (3, 4)
    assert answer["forward_residual"] == answer["backward_residual"] == 0.0
    with np.load(tmp_path / "outputs.npz") as file:
        np.testing.assert_array_equal(file["z"], [[2.0, 4.0], [6.0, 8.0]])


def test_residuals_see_a_wrong_backward_solution(worker):
    z = 2 * worker.x
    u = z - worker.arrays["target"]  # half of the true one
    # The image of u is u / 2 + u: the difference u / 2 is a third of it.
    assert worker.residuals(z, u) == (0.0, pytest.approx(1 / 3))


def test_the_worst_sample_counts():
    value = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert protocol.worst_residual(value, value) == 0.0
    assert protocol.worst_residual(value, value * [[1.0], [2.0]]) == pytest.approx(0.5)


def test_a_step_is_compiled_once_and_timed_at_least_once(worker):
    assert len(worker.do_time(VARIANT, 0.0)["seconds"]) == 1
    assert len(worker.do_time(VARIANT, 1e-4)["seconds"]) >= 1
    assert worker.built == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_what_a_step_needs_beyond_rest():
    size = 64 * 2**20
    peak = protocol.peak_beyond_rest(lambda: np.ones(size, np.uint8).sum())
    assert size * 0.9 < peak < size * 1.5


def test_every_pool_gets_the_same_threads():
    variables = protocol.environment(3)
    assert {variables[name] for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "NPROC")} == {
        "3"
    }


@pytest.mark.parametrize("name", ["torchdeq_worker", "jax_worker", "optimistix_roots"])
def test_a_peers_process_needs_only_its_framework(name):
    """Its environment has neither TensorFlow nor Keras, without which nothing of tfdeq is imported."""
    found, left = set(), {f"benchmarks.engine.peers.{name}"}
    while left:
        found |= left
        left = {other for module in left for other in build_files.imports(module)} - found
    assert {module.split(".")[0] for module in found} == {"benchmarks"}
