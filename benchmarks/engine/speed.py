"""Times tfdeq against TorchDEQ, JAXopt and Optimistix; `make bench` runs it.

python -m benchmarks.engine.speed --workdir=runs/bench --peers_python=.venv-peers/bin/python

All get the same weights and inputs, as npz files. Outputs and gradients of a converged solve must agree
before anything is timed. Each framework runs in a separate process. Every variant is timed once per
round, and the median over the rounds counts, so that a slow minute of the machine affects all variants
equally.
"""

import contextlib
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import flags

from benchmarks.engine import engine_cases, engine_report
from benchmarks.engine.peers.client import Client, WorkerError
from tfdeq.programs import program
from tfdeq.programs.workdir import read_json, write_json

FLAGS = flags.FLAGS

FIXED_STEPS = 20
TOLERANCE = 1e-3
TOLERANCE_BUDGET = 40
# Enough for every cell to converge to the last digits of float32.
REFERENCE_STEPS = 160
AGREEMENT = 1e-3
# Variants that take longer than --slow are timed in this many rounds, and only with fixed steps.
_ROUNDS_OF_THE_SLOW = 3
# label -> (module, solver of the reference). The first is tfdeq, with which the others are
# compared.
WORKERS = {
    "tfdeq": ("benchmarks.engine.peers.tfdeq_worker", "fixed_point_iteration"),
    "TorchDEQ": ("benchmarks.engine.peers.torchdeq_worker", "fixed_point_iter"),
    "JAX": ("benchmarks.engine.peers.jax_worker", "JAXopt fixed_point_iteration"),
}


def variant(solver: str, mode: str, forward: int = 0, backward: int = 0) -> dict[str, Any]:
    """Returns the variant of a solver for runs in a mode: "fixed" or "tolerance"."""
    steps = FIXED_STEPS if mode == "fixed" else TOLERANCE_BUDGET
    return {
        "solver": solver,
        "forward_steps": forward or steps,
        "backward_steps": backward or steps,
        "tolerance": None if mode == "fixed" else TOLERANCE,
    }


def largest_difference(outputs: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Returns the largest relative difference, in the 2-norm, of z, u and the gradients."""
    worst = 0.0
    for name in reference:
        expected = np.asarray(reference[name], np.float64)
        difference = np.linalg.norm(np.asarray(outputs[name], np.float64) - expected)
        worst = max(worst, float(difference / np.linalg.norm(expected)))
    return worst


def check_agreement(differences: Mapping[str, float]) -> None:
    """Raises a ValueError that lists all frameworks beyond the limit."""
    wrong = [f"{name}: {value:.1e}" for name, value in differences.items() if not value < AGREEMENT]
    if wrong:
        raise ValueError(
            f"Converged outputs or gradients differ from tfdeq's by more than {AGREEMENT}: "
            f"{', '.join(wrong)}. Nothing was timed: the cells are not the same."
        )


class Run:
    """One case: its files, its workers, and one row per variant."""

    def __init__(self, name: str, workers: Mapping[str, Client], workdir: str):
        sizes = engine_cases.QUICK_CASES if FLAGS.quick else engine_cases.CASES
        self._case = sizes[name]
        self._workers = workers
        self._workdir = workdir
        self._arrays = os.path.join(workdir, f"{name}.npz")
        np.savez(self._arrays, **engine_cases.make_arrays(self._case))
        self.rows: list[dict[str, Any]] = []

    def execute(self) -> dict[str, Any]:
        differences = self._agree()
        for label in self._workers:
            for solver, modes in self._workers[label].ask("hello")["solvers"].items():
                row = None
                for mode in modes:
                    # For a tolerance, many runs precede the timed ones, because settings are found
                    # by trial.
                    if row is not None and self._is_slow(row):
                        text = f"not run: at fixed steps it takes {row['first_seconds']:.2g} s"
                        self.rows.append({**row, "mode": mode, "error": text})
                    else:
                        row = self._add(label, solver, mode, variant(solver, mode))
        self._add_bounds()
        self._time()
        return {
            "description": engine_cases.describe(self._case),
            "agreement": differences,
            "rows": self.rows,
        }

    def _agree(self) -> dict[str, float]:
        differences = {}
        for label, worker in self._workers.items():
            worker.ask(
                "prepare",
                path=self._arrays,
                kind=self._case["kind"],
                heads=self._case.get("heads"),
            )
            steps = REFERENCE_STEPS
            reference = variant(WORKERS[label][1], "fixed", steps, steps)
            outputs = self._outputs(label, reference)[1]
            if label == "tfdeq":
                self._reference = outputs
            else:
                differences[label] = largest_difference(outputs, self._reference)
        check_agreement(differences)
        return differences

    def _outputs(self, label: str, what: Mapping[str, Any]) -> tuple[dict[str, Any], dict]:
        path = os.path.join(self._workdir, "outputs.npz")
        answer = self._workers[label].ask("outputs", variant=what, path=path)
        with np.load(path) as file:
            return answer, {name: file[name] for name in file.files}

    def _is_slow(self, row: Mapping[str, Any]) -> bool:
        return row.get("first_seconds", 0.0) > FLAGS.slow

    def _add(self, label: str, solver: str, mode: str, what: Mapping[str, Any]) -> dict[str, Any]:
        """Prepares a variant, appends its row and returns it."""
        row = {"worker": label, "solver": solver, "mode": mode, "variant": dict(what)}
        try:
            answer, outputs = self._outputs(label, what)
            gradients = {name: self._reference[name] for name in outputs if name[:2] == "d/"}
            row.update(answer, gradient_error=largest_difference(outputs, gradients), seconds=[])
            taken = self._workers[label].ask("time", variant=what, seconds=0.0)["seconds"]
            row["first_seconds"] = taken[0]
        except WorkerError as error:
            row["error"] = str(error)
        self.rows.append(row)
        print(f"  {label} {solver}, {mode}: {row.get('error', 'ready')}", flush=True)
        return row

    def _add_bounds(self) -> None:
        """Adds the lower bounds: only the evaluations and products of tfdeq's best run."""
        bounds = ("bound", "bound, graph")
        for bound in bounds:
            self._add("tfdeq", bound, "fixed", variant(bound, "fixed"))
        best = engine_report.fewest_evaluations(self.rows, "tfdeq")
        if best is not None:
            # The bound itself makes the evaluations in addition to those of the forward solve.
            forward, backward = max(1, best["evaluations"] - 2), max(1, best["products"])
            for bound in bounds:
                what = variant(bound, "fixed", forward, backward)
                self._add("tfdeq", bound, "tolerance", what)

    def _time(self) -> None:
        rows = [row for row in self.rows if "error" not in row]
        turn = 0.0 if FLAGS.quick else FLAGS.turn
        for round_ in range(1 if FLAGS.quick else FLAGS.rounds):
            start = round_ % max(1, len(rows))  # no variant always follows the same one
            for row in rows[start:] + rows[:start]:
                if self._is_slow(row) and round_ >= _ROUNDS_OF_THE_SLOW:
                    continue
                worker = self._workers[row["worker"]]
                taken = worker.ask("time", variant=row["variant"], seconds=turn)["seconds"]
                row["seconds"].append(statistics.median(taken))
            print(f"  round {round_} done", flush=True)
        for row in rows:
            row["median_seconds"] = statistics.median(row["seconds"])


@contextlib.contextmanager
def start_workers(workdir: str, python: str | None) -> Iterator[tuple[dict[str, Client], dict]]:
    """Starts all workers; yields those that answer, and the errors of the others."""
    workers, missing = {}, {}
    with contextlib.ExitStack() as stack:
        for label, (module, _) in WORKERS.items():
            interpreter = sys.executable if label == "tfdeq" else python
            if interpreter is None:
                missing[label] = "not run: no --peers_python"
                continue
            log = os.path.join(workdir, f"{label}.log")
            try:
                worker = stack.enter_context(Client(module, interpreter, log, FLAGS.threads))
                worker.ask("hello")
            except (WorkerError, OSError) as error:
                missing[label] = f"not run: {error}"
            else:
                workers[label] = worker
        yield workers, missing


def processor() -> str:
    """Returns the name of the processor, if the system provides it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def run_cases(workdir: str, results: str) -> None:
    """Runs the cases in the flags, and writes a JSON file in `results` for each."""
    os.makedirs(workdir, exist_ok=True)
    with start_workers(workdir, FLAGS.peers_python) as (workers, missing):
        if "tfdeq" not in workers:
            raise ValueError(f"tfdeq itself does not run: {missing['tfdeq']}")
        versions = {}
        for worker in workers.values():
            versions.update(worker.ask("hello")["versions"])
        setting = {
            "quick": FLAGS.quick,
            "threads": FLAGS.threads,
            "rounds": 1 if FLAGS.quick else FLAGS.rounds,
            "processor": processor(),
            "versions": versions,
            "missing": missing,
        }
        for name in FLAGS.cases:
            print(f"{name}:", flush=True)
            result = Run(name, workers, workdir).execute()
            write_json(os.path.join(results, f"{name}.json"), {**setting, **result})


def main() -> None:
    unknown = sorted(set(FLAGS.cases) - set(engine_cases.CASES))
    if unknown:
        raise ValueError(f"Unknown --cases {unknown}. Known: {', '.join(engine_cases.CASES)}.")
    results = FLAGS.results or os.path.join(FLAGS.workdir, "results")
    document = FLAGS.document or os.path.join(FLAGS.workdir, "benchmarks.md")
    if not FLAGS.report_only:
        run_cases(FLAGS.workdir, results)
    found = {name: read_json(os.path.join(results, f"{name}.json")) for name in engine_cases.CASES}
    found = {name: value for name, value in found.items() if value is not None}
    memory = read_json(os.path.join(results, "memory.json"))
    engine_report.write(document, found, memory)
    print(f"Tables and plots: {document}")


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    flags.DEFINE_string("workdir", None, "Folder for weights, outputs and logs.", required=True)
    flags.DEFINE_string("peers_python", None, "Interpreter that has the peers; none: tfdeq alone.")
    flags.DEFINE_list("cases", list(engine_cases.CASES), "Cases to run. Default: all.")
    flags.DEFINE_integer("rounds", 7, "Timed rounds, each variant once a round. Default: 7.")
    flags.DEFINE_float(
        "turn", 0.5, "Seconds of training steps in a turn, at least one. Default: 0.5."
    )
    flags.DEFINE_float(
        "slow",
        3.0,
        "Seconds of a training step beyond which a solver is only timed at fixed steps.",
    )
    flags.DEFINE_integer("threads", 2, "Threads of each framework. Default: 2.")
    flags.DEFINE_bool("quick", False, "Tiny sizes, one round: shows that everything works.")
    flags.DEFINE_bool(
        "report_only", False, "Run nothing: tables and plots of the results there are."
    )
    flags.DEFINE_string(
        "results", None, "Folder of the JSON results. Default: results in --workdir."
    )
    flags.DEFINE_string("document", None, "Markdown file. Default: benchmarks.md in --workdir.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
