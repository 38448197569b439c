"""Trains the runs of a suite, and keeps what a report needs of them.

python -m benchmarks.training.suite --suite=copy_memory --workdir=runs/copy_memory

Each run and seed is a process of its own. What is finished in --workdir, or stands in --results already,
is not trained again, so that a suite can be trained in several sittings and on several machines; take a
run out of --results to have it trained anew. `benchmarks.results.document` makes docs/results.md of them.
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

POINTS = 60  # of a curve that is kept
CURVES = ("loss", "residual", "steps")  # and those of validation
PLACES = ("data_dir", "files", "prepared_dir")  # of a machine; nothing of a result


def define_flags() -> None:
    """Defines the program's flags; modules that import it may have flags of the same names."""
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
    """Trains every run and seed that is neither finished nor known."""
    with Runs(suite.module, FLAGS.parallel) as processes:
        for seed in range(FLAGS.seeds):
            for name, settings in suite.runs.items():
                folder = run_folder(workdir, name, seed)
                wanted = not FLAGS.only or name in FLAGS.only
                wanted &= all(row["seed"] != seed for row in known.get(name, ()))
                if wanted and not os.path.exists(os.path.join(folder, "metrics.json")):
                    # A flagfile comes first: what stands behind it holds.
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
    """Returns name -> what is kept of each finished seed; runs without one are left out.

    Args:
        known: what was kept earlier; a run of the same name and seed in workdir takes its place.
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
    """What a report needs of metrics.json."""
    train = metrics["train"]
    kept = [name for name in train if name in CURVES or name.startswith("validation_")]
    numbers = {k: v for k, v in train.items() if not isinstance(v, list)}
    residuals = [value for value in train.get("residual", ()) if value is not None]
    if residuals:
        # Of all rows: the curve that is kept has some of them.
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
    """Returns [step, value] of at most so many of a column's values as a plot shows, the last one too."""
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
