"""The results of runs, and the page that compares them."""

import datetime
import glob
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tfdeq.programs import commands
from tfdeq.programs.workdir import read_json, write_atomically
from tfdeq.runs.kind import LANGUAGE_MODEL
from tfdeq.serving.versions import verified
from tfdeq.training.report import report_html, report_page, report_run
from tfdeq.training.report.plotting import number
from tfdeq.training.report.report_plots import words
from tfdeq.training.task import score_of


def summary(workdir: str) -> list[str]:
    """Returns the results of a finished run and the places of its files, line by line.

    Raises:
        FileNotFoundError: if there is no finished run in workdir.
    """
    metrics = read_json(os.path.join(workdir, "metrics.json"))
    if metrics is None:
        raise FileNotFoundError(
            f"{workdir} holds no metrics.json: it has no finished run. Start or continue a run: "
            f"{commands.command('trainers.language_model')} --workdir={workdir}"
        )
    return [*_results(metrics), *_places(workdir)]


def write_page(workdirs: Sequence[str], output: str) -> list[report_run.Run]:
    """Writes the page that compares the runs atomically, and returns the runs.

    Raises:
        FileNotFoundError: if a folder holds no run. IsADirectoryError: if output is a folder.
    """
    if os.path.isdir(output):
        raise IsADirectoryError(
            f"--output={output} is a folder. Name a file, for example {output}/report.html."
        )
    runs = report_run.read(workdirs)
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = report_page.page(runs, made)

    def write(name):
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)

    write_atomically(output, write)
    return runs


def _results(metrics: Mapping[str, Any]) -> list[str]:
    test = report_run.mapping(metrics.get("test"))
    names = list(report_run.scores(test))
    if not names:
        return ["", "metrics.json holds no test figures."]
    key, unit = names[0], words(names[0])
    quality = ", ".join(f"{words(name)}: {test[name]:.3f}" for name in names)
    lines = ["", f"Test {quality}{_solve(test)}"]
    if number(test.get("standard_error")) is not None:
        lines.append(
            f"  standard error of the {unit}: {test['standard_error']:.3f}, over "
            f"{report_html.text(test.get('examples'))} examples{_of_tokens(test)}"
        )
    for budget, row in report_run.mapping(test.get("by_budget")).items():
        if number(row.get(key)) is not None:
            lines.append(f"  at {budget} x the budget: {row[key]:.3f}{_residual(row, ', ')}")
    lines += _of_other_data(test, key)
    baseline = report_run.mapping(metrics.get("baseline"))
    if number(baseline.get(key)) is not None:
        line = f"Best baseline, {baseline.get('name')}, as many steps: {baseline[key]:.3f}"
        score = score_of(metrics)
        if score.name == key:
            sign = 1 if score.lower_is_better else -1
            line += f" ({_comparison(sign * test[key], sign * baseline[key], unit)})"
        lines.append(line)
    return lines


def _of_other_data(test: Mapping[str, Any], key: str) -> list[str]:
    """Returns the figures for sizes and grades other than in training, at the largest budget.

    Figures for several starts are those for the largest number of starts.
    """
    lines = []
    groups = {
        **{"by_length": "T =", "by_size": "size", "by_grade": "grade", "by_set": "set"},
        "by_starts": "most starts,",
    }
    for group, name in groups.items():
        for what, row in report_run.mapping(test.get(group)).items():
            row = report_run.mapping(row)
            if row and key not in row:  # by budget, or by number of starts
                row = report_run.mapping(row[max(row, key=float)])
            if number(row.get(key)) is not None:
                lines.append(f"  {name} {what}: {row[key]:.3f}{_solve(row)}")
    return lines


def _of_tokens(test: Mapping[str, Any]) -> str:
    return f" of {report_html.text(test['tokens'])} tokens in all" if "tokens" in test else ""


def _comparison(own: float, other: float, unit: str) -> str:
    difference = round(other - own, 3)
    if not difference:
        return "the equilibrium is as good"
    better = "the equilibrium" if difference > 0 else "the baseline"
    return f"{better} is better by {abs(difference):.3f} {unit}"


def _solve(row: Mapping[str, Any]) -> str:
    if number(row.get("steps")) is None or number(row.get("residual")) is None:
        return ""
    return f" (relative {_residual(row, '')} after {row['steps']:.1f} steps on average)"


def _residual(row: Mapping[str, Any], before: str) -> str:
    known = number(row.get("residual"))
    return "" if known is None else f"{before}residual {known:.1e}"


def _places(workdir: str) -> list[str]:
    lines = ["", "Where things are:"]
    for name, what in (
        ("metrics.json", "every figure"),
        ("*.png", "pictures"),
        ("model.keras", "the Keras model"),
        ("checkpoints", "checkpoints"),
    ):
        found = sorted(glob.glob(os.path.join(glob.escape(workdir), name)))
        lines += [f"  {path}  ({what})" for path in found]
    lines += [f"  {path}  (the SavedModel for TF Serving)" for path in _versions(workdir)]
    report, standing = _verification(workdir)
    if standing is not None:
        lines.append(f"  {report}  (what its verification found: {standing})")
    return lines


def _versions(workdir: str) -> list[str]:
    """Returns the version folders that were exported to the run's own folder."""
    pattern = os.path.join(glob.escape(workdir), "export", "*", "saved_model.pb")
    folders = [os.path.dirname(path) for path in glob.glob(pattern)]
    return sorted(folders, key=lambda path: (len(path), path))  # 10 comes after 9


def _verification(workdir: str) -> tuple[str, str | None]:
    """Returns the report of export.verify, and whether it still applies; None if there is no report."""
    path = os.path.join(workdir, "export_report.json")
    report = read_json(path)
    return path, None if report is None else verified.standing(report, workdir)


def next_steps(workdir: str) -> list[str]:
    """Returns the next steps with a run, line by line; those of an export only if not yet done."""
    lines = [
        "",
        "What to do next:",
        f"  look:   {_tensorboard()} {shlex.quote(f'--logdir={workdir}')}",
    ]
    kind = _kind(workdir)
    if kind == LANGUAGE_MODEL:
        command = commands.command("trainers.language_model")
        lines.append(f"  learn:  {command} --dataset=text --files='YOUR/*.txt' --workdir=runs/mine")
    export = os.path.join(workdir, "export")
    versions = _versions(workdir)
    if not versions:
        command = commands.command("export.saved_model")
        arguments = shlex.join([f"--workdir={workdir}", f"--output={export}"])
        lines.append(f"  export: {command} {arguments}")
        return lines
    # Again, if the report is about a version that has changed since.
    if _verification(workdir)[1] not in (verified.PASSED, verified.FAILED):
        command = commands.command("export.verify")
        arguments = shlex.join([f"--workdir={workdir}", f"--model={versions[-1]}"])
        lines.append(f"  verify: {command} {arguments}")
    command = commands.command("export.serving_config")
    lines.append(
        f"  serve:  {command} {shlex.quote(f'--models={_served_name(kind)}={export}')} "
        "--output=runs/serving "
        "(see 'Export and serve' in README.md)"
    )
    return lines


def _kind(workdir: str) -> str:
    """Returns the kind of the run's task; runs of older releases trained language models only."""
    metrics = read_json(os.path.join(workdir, "metrics.json")) or {}
    return (metrics.get("kind") or {}).get("name", LANGUAGE_MODEL)


def _served_name(kind: str) -> str:
    """Returns the model's name on a server."""
    return kind if kind == LANGUAGE_MODEL else "model"


def _tensorboard() -> str:
    beside = os.path.join(os.path.dirname(sys.executable), "tensorboard")
    return os.path.relpath(beside) if os.path.exists(beside) else "tensorboard"
