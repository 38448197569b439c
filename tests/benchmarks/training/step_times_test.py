"""The benchmark of a step's time trains by the loop and by the bare step."""

import pytest
from absl import flags

from benchmarks.training import step_times
from tfdeq.data.text.registry import load
from tfdeq.training.flags.shared import configuration
from trainers.language_model import CONFIGURATION_FLAGS

SMALL = {
    **{"width": 16, "heads": 2, "feedforward": 32, "sequence_length": 16, "batch_size": 4},
    **{"max_steps": 3, "log_every": 2, "jit_compile": False},
}

SCALING = {"one device": {"replicas": 1, "tokens_per_second": 1.0, "last_loss": 2.0}}


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_call", [1, 2])
def test_loop_and_bare_step_are_timed(steps_per_call, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("An equilibrium has a residual, and steps to reach it. " * 99)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test", "--workdir=unused"])
    config = {**configuration(CONFIGURATION_FLAGS), "dataset": "text", **SMALL}
    config["steps_per_call"] = steps_per_call
    data = load("text", files=str(words), prepared_dir=str(tmp_path / "tfds"))
    found = step_times.measure_overhead(config, data, str(tmp_path / "run"), rows=3)
    assert all(found[f"{name}_seconds"] > 0 for name in ("loop", "bare", "solve", "update"))
    assert found["smallest_ratio"] <= found["ratio"]
    table = step_times.document({"machine": "one", "overhead": [found], "scaling": SCALING})
    assert f"| {steps_per_call} | " in table
