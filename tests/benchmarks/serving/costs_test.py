"""The serving benchmark on a small model, with real versions and the real program."""

import numpy as np
import pytest

import tfdeq
from benchmarks.serving import costs
from tests.support.cases import contracting_language_model

LENGTH = 24


@pytest.fixture(scope="module")
def model():
    return contracting_language_model(17, LENGTH, tfdeq.Anderson(60, 1e-3))


@pytest.mark.slow
def test_what_it_measures(model, serving_executable, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "NEW_TOKENS", 6)
    monkeypatch.setattr(costs, "GENERATING", (2,))
    monkeypatch.setattr(costs, "TURNS", 1)
    versions = costs.Versions(model, str(tmp_path), serving_executable)
    windows = np.random.default_rng(0).integers(0, 17, (8, LENGTH)).astype(np.int32)
    (generation,) = costs.measure_generation(versions, windows, 1e-5)
    assert generation["same_tokens"] == 1.0
    assert generation["largest_residual"] <= 1e-5
    assert generation["evaluations_per_token"] > 1
    compaction = costs.measure_compaction(versions, windows)
    assert compaction["hard_steps"] > compaction["easy_steps"]
    quality = costs.measure_quality(model, windows)
    assert [row["converged"] for row in quality] == [1.0] * 6
    assert all(row["largest_residual"] <= np.float32(row["tolerance"]) for row in quality)
    text = costs.document(
        {
            "parameters": model.count_params(),
            "width": 16,
            "sequence_length": LENGTH,
            "machine": "a machine",
            "tolerance": 1e-5,
            "generation": [generation],
            "compaction": compaction,
            "compiled": [{"batch": 1, "graph_seconds": 0.002, "xla_seconds": 0.001}],
            "warm_up": [
                {
                    "signature": "score",
                    "batch": 1,
                    "warm_up_seconds": 0.1,
                    "first_seconds": 0.003,
                    "later_seconds": 0.002,
                    "ratio": 1.5,
                }
            ],
            "quality": quality,
        }
    )
    assert "| 1 | 2.0 | 1.0 |" in text
    assert "| `score` | 1 | 100.0 | 3.0 | 2.0 | 1.50 |" in text
