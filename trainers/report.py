"""Says what a run has reached and what to do next: python -m trainers.report --workdir=DIR."""

import glob
import os
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from trainers import program
from trainers.workdir import read_json

FLAGS = flags.FLAGS


def summary(workdir: str) -> list[str]:
    """Returns the lines of the report.

    Raises:
        FileNotFoundError: if no finished run lies in workdir.
    """
    metrics = read_json(os.path.join(workdir, "metrics.json"))
    if metrics is None:
        raise FileNotFoundError(
            f"{workdir} holds no metrics.json: no finished run lies there. Train one, or go on with "
            f"it: {program.command('trainers', 'language_model')} --workdir={workdir}"
        )
    return [*_results(metrics), *_places(workdir), *_next_steps(workdir)]


def _results(metrics: Mapping[str, Any]) -> list[str]:
    test = metrics["test"]
    unit = "byte" if "bits_per_byte" in test else "word"
    key = f"bits_per_{unit}"
    lines = [
        "",
        f"Held-out bits per {unit}: {test[key]:.3f} "
        f"(relative residual {test['residual']:.1e} after {test['steps']:.1f} steps on average)",
    ]
    for budget, row in test["by_budget"].items():
        lines.append(f"  at {budget} x the budget: {row[key]:.3f}, residual {row['residual']:.1e}")
    if "baseline" in metrics:
        baseline = metrics["baseline"]
        lines.append(
            f"Best baseline, {baseline['name']}, as many steps: {baseline[key]:.3f} "
            f"(the equilibrium is better by {baseline[key] - test[key]:.3f})"
        )
    return lines


def _places(workdir: str) -> list[str]:
    lines = ["", "Where things are:"]
    for name, what in (
        ("metrics.json", "every figure"),
        ("*.png", "pictures"),
        ("model.keras", "the Keras model"),
        ("checkpoints", "checkpoints"),
        ("export/*/saved_model.pb", "the SavedModel for TF Serving"),
        ("export_report.json", "what its verification found"),
    ):
        for path in sorted(glob.glob(os.path.join(workdir, name))):
            path = os.path.dirname(path) if path.endswith("saved_model.pb") else path
            lines.append(f"  {path}  ({what})")
    return lines


def _next_steps(workdir: str) -> list[str]:
    return [
        "",
        "What to do next:",
        f"  look:   {_tensorboard()} --logdir={workdir}",
        f"  learn:  {program.command('trainers', 'language_model')} --dataset=text "
        "--files='YOUR/*.txt' --workdir=runs/mine",
        f"  serve:  see 'Serve it' in README.md; the model's folder is {os.path.join(workdir, 'export')}",
    ]


def _tensorboard() -> str:
    beside = os.path.join(os.path.dirname(sys.executable), "tensorboard")
    return os.path.relpath(beside) if os.path.exists(beside) else "tensorboard"


def main() -> None:
    print("\n".join(summary(FLAGS.workdir)))


def run() -> None:
    """Entry point of the console script."""
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    program.run(main)


if __name__ == "__main__":
    run()
