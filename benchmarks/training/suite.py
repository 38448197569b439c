"""Trains the runs of a suite, and stores the results that a report needs.

python -m benchmarks.training.suite --suite=copy_memory --workdir=runs/copy_memory

Each run and seed is a separate process. Runs that are finished in --workdir, or already in --results,
are not trained again, so a suite can be trained in several sessions and on several machines; remove a
run from --results to train it again. `benchmarks.results.document` makes docs/results.md from the
results.
"""

import os
from collections.abc import Mapping
from typing import Any

from absl import flags

from benchmarks.training.suites import SUITES, Suite
from tfdeq.programs import program
from tfdeq.programs.processes import Runs
from tfdeq.programs.workdir import read_json, write_json

FLAGS = flags.FLAGS

POINTS = 60  # number of points of a stored curve
CURVES = ("loss", "residual", "steps")  # and the same on validation data
PLACES = ("data_dir", "files", "prepared_dir")  # specific to a machine; do not affect results


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    flags.DEFINE_enum("suite", None, sorted(SUITES), "Runs to train; see suites.py.")
    flags.DEFINE_string("workdir", None, "Folder of the runs.")
    flags.DEFINE_integer("seeds", 3, "Runs of each, seeds 0, 1, …. Default: 3.")
    flags.DEFINE_integer("parallel", 2, "Processes at a time. Default: 2.")
    flags.DEFINE_list("only", [], "Names of the runs to train, of several; none: all.")
    flags.DEFINE_list("overrides", [], "Further flags of all runs, as name=value.")
    flags.DEFINE_string("results", None, "JSON file of the figures. Default: results.json there.")
    flags.mark_flags_as_required(["suite", "workdir"])


def train_all(
    suite: Suite,
    workdir: str,
    overrides: Mapping[str, str],
    known: Mapping[str, list[dict[str, Any]]],
) -> None:
    """Trains all runs and seeds that are neither finished nor already stored."""
    with Runs(suite.module, FLAGS.parallel) as processes:
        for seed in range(FLAGS.seeds):
            for name, settings in suite.runs.items():
                folder = run_folder(workdir, name, seed)
                wanted = not FLAGS.only or name in FLAGS.only
                wanted &= all(row["seed"] != seed for row in known.get(name, ()))
                if wanted and not os.path.exists(os.path.join(folder, "metrics.json")):
                    # A flagfile comes first, because later flags override it.
                    processes.start(folder, {**settings, "seed": seed, **overrides})
        processes.wait()


def run_folder(workdir: str, name: str, seed: int) -> str:
    return os.path.join(workdir, f"{name.replace(' ', '_')}_seed_{seed}")


def collect(
    suite: Suite,
    workdir: str,
    seeds: int,
    known: Mapping[str, list[dict[str, Any]]] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Returns name -> the stored results of each finished seed, for runs that have any.

    Args:
        known: results stored earlier; a run in workdir with the same name and seed replaces them.
    """
    found = {}
    for name in suite.runs:
        rows = {row["seed"]: row for row in (known or {}).get(name, ())}
        for seed in range(seeds):
            metrics = read_json(os.path.join(run_folder(workdir, name, seed), "metrics.json"))
            if metrics is not None:
                rows[seed] = _kept(seed, metrics)
        if rows:
            found[name] = [rows[seed] for seed in sorted(rows)]
    return found


def _kept(seed: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of metrics.json that a report needs."""
    train = metrics["train"]
    kept = [name for name in train if name in CURVES or name.startswith("validation_")]
    numbers = {k: v for k, v in train.items() if not isinstance(v, list)}
    residuals = [value for value in train.get("residual", ()) if value is not None]
    if residuals:
        # Over all rows, because the stored curve has only some of them.
        numbers["largest_residual"] = max(residuals)
    return {
        "seed": seed,
        "parameters": metrics["parameters"],
        "config": {k: v for k, v in metrics["config"].items() if k not in PLACES},
        "test": metrics["test"],
        "figures": numbers,
        "curves": {name: thinned(train["step"], train[name]) for name in kept},
    }


def thinned(steps: list[int], values: list[Any]) -> list[list[Any]]:
    """Returns [step, value] for at most POINTS of a column's values, including the last one."""
    known = [[step, value] for step, value in zip(steps, values, strict=True) if value is not None]
    stride = max(1, -(-len(known) // POINTS))
    return known[::-1][::stride][::-1]


def main() -> None:
    suite = SUITES[FLAGS.suite]
    unknown = sorted(set(FLAGS.only) - set(suite.runs))
    if unknown:
        raise ValueError(f"No such runs: {', '.join(unknown)}. Known: {', '.join(suite.runs)}.")
    overrides = dict(item.split("=", 1) for item in FLAGS.overrides)
    path = FLAGS.results or os.path.join(FLAGS.workdir, "results.json")
    known = (read_json(path) or {"runs": {}})["runs"]
    train_all(suite, FLAGS.workdir, overrides, known)
    results = collect(suite, FLAGS.workdir, FLAGS.seeds, known)
    write_json(path, {"suite": FLAGS.suite, "runs": results})
    for name, rows in results.items():
        tests = [{k: v for k, v in row["test"].items() if isinstance(v, float)} for row in rows]
        print(f"{name}, {rows[0]['parameters']:,} parameters: {tests}")
    print(f"Kept in {path}.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
