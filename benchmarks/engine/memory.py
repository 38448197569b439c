"""Peak memory of a training step against depth; `make bench` runs it.

python -m benchmarks.engine.memory --workdir=runs/bench --peers_python=.venv-peers/bin/python

Each variant runs in a separate process: explicit layers and tfdeq in TensorFlow compiled by XLA,
TorchDEQ and its explicit layers in eager PyTorch.
"""

import os
import sys
from typing import Any

import numpy as np
from absl import flags

from benchmarks.engine import engine_cases, speed
from benchmarks.engine.peers.client import Client, WorkerError
from tfdeq.programs import program
from tfdeq.programs.workdir import write_json

FLAGS = flags.FLAGS

EXPLANATION = """
The Transformer case. Measured in a process for each point: the peak of resident memory while one
compiled training step runs, above what is resident at rest before it, where weights, inputs and code
already are; the least of three steps after a first one. Freed blocks go back to the system at once
(malloc thresholds of 128 KiB; TensorFlow without oneDNN, whose allocator keeps what is freed), so that
memory at rest is memory in use. Explicit layers share their
weights, so the weights of real layers are not counted. No solver stops early.
"""


def variants() -> list[tuple[str, str, str, int]]:
    """Returns (name for readers, worker, solver, steps) for every point."""
    layers, budgets = [int(value) for value in FLAGS.layers], [int(v) for v in FLAGS.budgets]
    points = [("explicit layers", "tfdeq", "explicit", count) for count in layers]
    for solver in ("fixed_point_iteration", "anderson", "broyden"):
        points += [(f"tfdeq {solver}", "tfdeq", solver, count) for count in budgets]
    if FLAGS.peers_python:
        for solver in ("fixed_point_iter", "anderson", "broyden"):
            points += [(f"TorchDEQ {solver}", "TorchDEQ", solver, count) for count in budgets]
        points += [("PyTorch explicit", "TorchDEQ", "explicit", count) for count in layers]
    return points


def measure(worker: str, solver: str, steps: int, arrays: str, case: dict[str, Any]) -> int:
    """Returns the bytes of one point, measured in a separate process."""
    python = sys.executable if worker == "tfdeq" else FLAGS.peers_python
    log = os.path.join(FLAGS.workdir, f"memory_{worker}.log")
    module = speed.WORKERS[worker][0]
    with Client(module, python, log, FLAGS.threads, return_memory=True) as client:
        client.ask("prepare", path=arrays, kind=case["kind"], heads=case.get("heads"))
        variant = speed.variant(solver, "fixed", steps, steps)
        return client.ask("memory", variant=variant)["bytes"]


def main() -> None:
    case = (engine_cases.QUICK_CASES if FLAGS.quick else engine_cases.CASES)["transformer"]
    os.makedirs(FLAGS.workdir, exist_ok=True)
    arrays = os.path.join(FLAGS.workdir, "memory.npz")
    np.savez(arrays, **engine_cases.make_arrays(case))
    rows = []
    for name, worker, solver, steps in variants():
        row: dict[str, Any] = {"name": name, "steps": steps}
        try:
            row["bytes"] = measure(worker, solver, steps, arrays, case)
        except WorkerError as error:
            row["error"] = str(error)
        rows.append(row)
        print(row, flush=True)
    results = FLAGS.results or os.path.join(FLAGS.workdir, "results")
    write_json(
        os.path.join(results, "memory.json"),
        {
            "description": engine_cases.describe(case),
            "explanation": EXPLANATION.strip(),
            "quick": FLAGS.quick,
            "rows": rows,
        },
    )


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    speed.define_flags()
    flags.DEFINE_list(
        "layers", ["1", "2", "4", "8", "16", "30", "45", "60"], "Explicit layers to measure."
    )
    flags.DEFINE_list("budgets", ["10", "30", "60"], "max_steps of the solvers to measure.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
