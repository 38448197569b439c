"""The runs that a report compares, read from their folders."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tfdeq.programs import commands
from tfdeq.programs.workdir import Curves, read_json
from tfdeq.training.report.plotting import defined, number

# Entries of a row of results that are not figures of quality.
SOLVE = ("residual", "steps")
_BESIDE = (*SOLVE, "standard_error", "examples", "tokens")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name: distinguishes it from the other runs of the report.
        metrics: its metrics.json; None while it trains.
        config: name -> value of its flags.
        curves: name -> one value per row, None if a row lacks it.
        starts: the entries of environment.json, one for each start.
    """

    name: str
    metrics: Mapping[str, Any] | None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    starts: Sequence[Any] = ()

    @property
    def train(self) -> Mapping[str, Any]:
        """The training entries of metrics.json; empty during training."""
        return mapping(mapping(self.metrics).get("train"))

    @property
    def test(self) -> Mapping[str, Any]:
        """The test entries of metrics.json; empty during training."""
        return mapping(mapping(self.metrics).get("test"))

    @property
    def by_budget(self) -> dict[float, Mapping[str, Any]]:
        """The results at multiples of the step budget, if there are any."""
        rows = {}
        for budget, row in mapping(self.test.get("by_budget")).items():
            try:
                multiple = float(budget)
            except ValueError:
                continue  # nothing to place on an axis
            if number(multiple) is not None:
                rows[multiple] = mapping(row)
        return dict(sorted(rows.items()))

    @property
    def step(self) -> int:
        """The last step in the curves."""
        return int(max(filter(number, self.curves.get("step") or ()), default=0))

    @property
    def state(self) -> str:
        """Whether the run is finished, and its current step."""
        return "finished" if self.is_finished else f"in progress at step {self.step}"

    @property
    def is_finished(self) -> bool:
        """Whether it has results, and is not being extended."""
        planned = mapping(mapping(self.metrics).get("config")).get("train_steps")
        longer = None not in (planned, self.config.get("train_steps")) and (
            planned != self.config["train_steps"]
        )
        return self.metrics is not None and not longer

    def last(self, name: str) -> float | None:
        """Returns the last value of a curve, or None."""
        _, values = defined(self.curves, name)
        return float(values[-1]) if len(values) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """Returns value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def scores(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures of quality in a row of results: all numbers except those of the solve."""
    return {
        name: value
        for name, value in row.items()
        if number(value) is not None and name not in _BESIDE
    }


def read(workdirs: Sequence[str]) -> list[Run]:
    """Returns the run of each of `distinct_folders`.

    Raises:
        FileNotFoundError: if a folder holds neither metrics.json nor curves.jsonl.
        ValueError: for a file that is not valid JSON.
    """
    folders = distinct_folders(workdirs)
    return [_read(path, name) for path, name in zip(folders, distinct_names(folders), strict=True)]


def distinct_folders(workdirs: Sequence[str]) -> list[str]:
    """Returns the folders in order; one that is given twice, or by a link, counts once."""
    folders: dict[str, str] = {}
    for path in workdirs:
        folders.setdefault(os.path.realpath(path), os.path.normpath(path))
    return list(folders.values())


def distinct_names(folders: Sequence[str]) -> list[str]:
    """Returns the last part of each path, with as many parts before it as distinguish it from the others."""
    parts = [os.path.abspath(path).split(os.sep) for path in folders]
    lengths = [1] * len(parts)
    while True:
        names = [os.sep.join(p[-n:]) for p, n in zip(parts, lengths, strict=True)]
        clashing = [i for i, name in enumerate(names) if names.count(name) > 1]
        growing = [i for i in clashing if lengths[i] < len(parts[i])]
        if not growing:
            return names
        for i in growing:
            lengths[i] += 1


def _read(workdir: str, name: str) -> Run:
    metrics = read_json(os.path.join(workdir, "metrics.json"))
    path = os.path.join(workdir, "curves.jsonl")
    if metrics is None and not os.path.isfile(path):
        raise FileNotFoundError(
            f"{workdir} holds neither metrics.json nor curves.jsonl: it is not the folder of a run. "
            f"Train one: {commands.command('trainers.language_model')} --workdir={workdir}"
        )
    curves = Curves(path).columns() or {
        name: values
        for name, values in mapping((metrics or {}).get("train")).items()
        if isinstance(values, list)
    }
    config = read_json(os.path.join(workdir, "config.json")) or (metrics or {}).get("config")
    starts = (read_json(os.path.join(workdir, "environment.json")) or {}).get("starts")
    return Run(
        name=name,
        metrics=metrics,
        config=mapping(config),
        curves=curves,
        starts=starts if isinstance(starts, list) else [],
    )
