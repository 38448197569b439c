"""Finished runs of a comparison in one file, so that another machine can continue the comparison."""

import glob
import os
from typing import Any

from tfdeq.programs.workdir import read_json, write_json

# Files with what a comparison measures or chooses once.
_SETTLED = ("seconds_per_step.json", "learning_rates.json")


def unpack(record: str, workdir: str) -> None:
    """Writes the contents of a record to the folder of a comparison, without replacing existing files.

    A run from a record has only metrics and a configuration: it counts as finished, and cannot be made
    longer.
    """
    content = read_json(record) or {}
    for name, value in content.get("settled", {}).items():
        if read_json(os.path.join(workdir, name)) is None:
            os.makedirs(workdir, exist_ok=True)
            write_json(os.path.join(workdir, name), value)
    for folder, metrics in content.get("runs", {}).items():
        folder = os.path.join(workdir, folder)
        if not os.path.exists(os.path.join(folder, "config.json")):
            os.makedirs(folder, exist_ok=True)
            write_json(os.path.join(folder, "config.json"), metrics["config"])
            write_json(os.path.join(folder, "metrics.json"), metrics)


def pack(record: str, workdir: str) -> None:
    """Writes the finished runs in a comparison's folder, and its measurements and choices, to a record."""
    settled = {name: read_json(os.path.join(workdir, name)) for name in _SETTLED}
    runs = {}
    for path in sorted(
        glob.glob(os.path.join(glob.escape(workdir), "**", "metrics.json"), recursive=True)
    ):
        runs[os.path.relpath(os.path.dirname(path), workdir)] = _figures(read_json(path) or {})
    write_json(
        record,
        {"settled": {name: value for name, value in settled.items() if value}, "runs": runs},
    )


def _figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a run's metrics that a comparison reads."""
    train, test = metrics.get("train") or {}, metrics.get("test") or {}
    return {
        "config": metrics.get("config"),
        "score": metrics.get("score"),
        "parameters": metrics.get("parameters"),
        "train": {name: train.get(name) for name in ("best", "peak_memory_mib")},
        "test": _numbers(test),
    }


def _numbers(figures: dict[str, Any]) -> dict[str, Any]:
    """Returns the numbers, including those by budget, grade and size."""
    found = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            found[name] = _numbers(value)
        elif isinstance(value, int | float):
            found[name] = value
    return found
