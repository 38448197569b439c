"""The load test reports the runtime's answers."""

import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

import tfdeq
from export import load_test as load_test_program
from tests.support.cases import contracting_language_model
from tfdeq.serving.kinds.language_model_kind import LanguageModelKind
from tfdeq.serving.server import load_test
from tfdeq.serving.versions import manifest, saved_model

ROOT = pathlib.Path(__file__).absolute().parents[3]


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    model = contracting_language_model(17, 12, tfdeq.Anderson(60, 1e-3))
    windows = np.random.default_rng(0).integers(0, 17, (8, 12)).astype(np.int32)
    return saved_model.export_kind(
        LanguageModelKind(model, windows), tmp_path_factory.mktemp("output"), batch_sizes=[1, 4]
    )


@pytest.mark.slow
def test_the_program(version, tmp_path):
    report = tmp_path / "report.json"
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "export.load_test", f"--model={version}", "--requests=40"),
            *("--clients=2", "--batch_size=3", "--mix=0.1:1,0.00001:1", f"--report={report}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(report.read_text())
    rough, fine = found["by_tolerance"]
    assert (rough["tolerance"], fine["tolerance"]) == (0.1, 1e-5)
    assert rough["examples"] + fine["examples"] == 120
    assert rough["largest_residual"] <= 0.1
    assert fine["largest_residual"] <= 1e-5
    assert fine["mean_steps"] > rough["mean_steps"]
    assert fine["p50_ms"] <= fine["p90_ms"] <= fine["p99_ms"]
    assert found["examples_per_second"] == pytest.approx(3 * found["requests_per_second"])
    assert "40 requests of 3 from 2 clients" in finished.stdout


def test_a_failing_call_ends_the_test():
    class Broken:
        def run(self, signature, inputs):
            raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        load_test.replay(
            Broken(), "serving_default", {"x": np.zeros([2, 1])}, {0.1: 1.0}, requests=5, clients=2
        )


def test_summary_of_known_samples():
    samples = [load_test.Sample(0.1, 0.001 * i, i, 0.05, 0) for i in range(1, 101)]
    found = load_test.summary(samples, elapsed=2.0, requests=50)
    assert found["requests_per_second"] == 25
    assert found["examples_per_second"] == 50
    (row,) = found["by_tolerance"]
    assert row["p50_ms"] == pytest.approx(50.5)
    assert row["p99_ms"] == pytest.approx(99.01)
    assert (row["mean_steps"], row["most_steps"]) == (50.5, 100)


@pytest.mark.parametrize("mix", ["0.1", "0.1:0", "-1:1", "a:b", "0.1:nan", "0.1:inf"])
def test_bad_mixes(mix):
    with pytest.raises(ValueError, match="TOLERANCE:SHARE"):
        load_test.parse_mix([mix])


def test_a_changed_version_is_refused(tmp_path, monkeypatch):
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"graph")
    manifest.write(tmp_path)
    (tmp_path / "assets.extra" / "notes.txt").write_text("not of the version")
    flags = types.SimpleNamespace(model=str(tmp_path), mix=["0.1:1"])
    monkeypatch.setattr(load_test_program, "FLAGS", flags)
    with pytest.raises(manifest.ChangedVersionError, match="assets.extra/notes.txt"):
        load_test_program.main()


@pytest.mark.slow
def test_a_version_without_records_says_so(version, tmp_path):
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "export.load_test", f"--model={version}"),
            *("--signature=nothing", "--requests=1"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert finished.returncode == 1
    assert "no warm-up records of the signature 'nothing'" in finished.stderr
