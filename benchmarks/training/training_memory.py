"""Memory and time of a training step of the real trainer against depth.

python -m benchmarks.training.training_memory --workdir=DIR
    [--results=benchmarks/results/training_memory.json]
    [flags of trainers.language_model, such as a preset's --flagfile]

It measures the equilibrium at its full budget, and explicit applications of the same cell, each in a
separate process that makes three training steps of the trainer's loop. Memory is the peak of resident
memory during a step, minus that at rest before it, which already includes weights and the optimiser's
state; the smallest of three values. Time is the median of three.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags

from benchmarks.engine.peers.protocol import memory_environment, peak_beyond_rest
from benchmarks.results.tables import memory_table
from tfdeq.programs import program
from tfdeq.programs.workdir import write_json
from tfdeq.training import experiment
from tfdeq.training.flags.shared import check_uses, configuration
from tfdeq.training.schedule import StepSettings
from tfdeq.training.text import language_model
from trainers.language_model import CONFIGURATION_FLAGS, data_of_a_dry_run

FLAGS = flags.FLAGS

ANSWER = "Measured: "


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    flags.DEFINE_list("depths", ["1", "12", "60"], "Explicit applications to measure.")
    flags.DEFINE_bool("point", False, "Measure the flags' own configuration alone, here.")
    flags.DEFINE_string("results", None, "JSON file for the figures. Default: in --workdir.")


def measure_here() -> dict[str, Any]:
    """Returns the bytes and seconds of a training step of the flags' configuration."""
    config = configuration(CONFIGURATION_FLAGS)
    # With weights that start at zero, the state would hardly matter, and a solve would end before
    # its budget.
    config = {**config, "recurrent_scale": 1.0, "tolerance": 1e-12}
    made = language_model.make_experiment(config, data_of_a_dry_run())
    with tempfile.TemporaryDirectory() as folder:
        trainer = experiment.make_trainer(config, folder, made)
        settings = StepSettings(config["depth"], config["max_steps"], penalty_share=1.0)
        batches = trainer.batches(0)
        taken, peaks = [], []

        def step():
            started = time.perf_counter()
            trainer.step.run(batches, [settings])
            trainer.step.wait()
            taken.append(time.perf_counter() - started)

        for _ in range(2):
            step()  # compiles
        taken.clear()
        for _ in range(3):
            peaks.append(peak_beyond_rest(step))
    parameters = made.task.model.count_params()
    return {"bytes": min(peaks), "seconds": statistics.median(taken), "parameters": parameters}


def measure(depth: int, arguments: list[str]) -> dict[str, Any]:
    """Returns `measure_here` from a separate process.

    Raises:
        RuntimeError: with the output of the process, if it failed.
    """
    penalty = ["--jacobian_penalty=0"] if depth else []
    found = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "benchmarks.training.training_memory",
                *arguments,
                f"--depth={depth}",
            ),
            *(*penalty, "--point"),
        ],
        env={**os.environ, **memory_environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [line for line in found.stdout.splitlines() if line.startswith(ANSWER)]
    if found.returncode or not answers:
        raise RuntimeError(f"The process of depth {depth} failed: {found.stderr[-2000:]}")
    return {"depth": depth, **json.loads(answers[0].removeprefix(ANSWER))}


def main() -> None:
    if FLAGS.point:
        print(ANSWER + json.dumps(measure_here()))
        return
    check_uses()
    rows = []
    for depth in (0, *map(int, FLAGS.depths)):
        rows.append(measure(depth, sys.argv[1:]))
        print(rows[-1], flush=True)
    path = FLAGS.results or os.path.join(FLAGS.workdir, "training_memory.json")
    write_json(path, {"rows": rows})
    print(memory_table(rows))


if __name__ == "__main__":
    define_flags()
    program.run(main)
