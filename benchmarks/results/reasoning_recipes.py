"""Sections of docs/results/reasoning.md: the recipe of each task, by budget, size and grade.

A run's figures are kept in benchmarks/results/reasoning_TASK_recipe.json, because a run's folder is not
part of the project.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results.tables import markdown_table
from tfdeq.programs.workdir import Curves, read_json, write_json

_Figures = Mapping[str, Any]  # of a test at one budget

# task -> flags of its run.
RUNS = {
    "prefix_sums": "--inspect_gradient --inspect_every=50 --test_puzzles=200 "
    "--test_sizes=512,2048,8192 --test_budget=512",
    "maze": "--test_puzzles=100 --test_sizes=15,33,59 --test_budget=16",
    "sudoku": "--evaluate_every=250 --test_puzzles=256 --test_budget=8",
}
# task -> what another run of the task showed.
_FURTHER = {
    "maze": (
        "Training longer does not help. With `--train_steps=20000 --inspect_gradient --inspect_every=1000` "
        "the same command ends at 100 % of 9 × 9, from step 2,800 to the end, 100 % of 15 × 15, 96 % of 33 × "
        "33 and 83 % of 59 × 59; of those of 59 × 59 that settle 88 % are right. The gradient through the "
        "last eight applications does not stay near the implicit one: its cosine with that of an accurate "
        "solve is 0.99 after 1,000 steps, then between −0.15 and 0.996, and between −0.2 and 0.31 from step "
        "13,000 on, when the loss is nearly 0."
    )
}


_FORMS = {
    "residual": "{:.1e}",
    "spectral_radius": "{:.2f}",
    "gradient_cosine": "{:.4f}",
    "reference_residual": "{:.1e}",
}


def command(task: str) -> str:
    """Returns the command of a task's run."""
    return (
        f"python -m trainers.reasoning --task={task} {RUNS[task]} --workdir=runs/reasoning_{task}"
    )


def keep(workdir: str, folder: str) -> str:
    """Writes the figures of a finished run to the folder of results, and returns the file.

    Raises:
        FileNotFoundError: if the run has no figures yet.
        ValueError: if it is no equilibrium that trainers.reasoning trained on one of these tasks.
    """
    metrics = read_json(os.path.join(workdir, "metrics.json"))
    if metrics is None:
        raise FileNotFoundError(
            f"{workdir} holds no metrics.json: the run has not finished, or the folder is another one."
        )
    train, config = metrics["train"], metrics["config"]
    task = config.get("task")
    if task not in RUNS or config["depth"]:
        raise ValueError(
            f"{workdir} holds no equilibrium that was trained on puzzles. Name a run of "
            f"trainers.reasoning without --depth, on one of {', '.join(RUNS)}."
        )
    path = os.path.join(folder, f"reasoning_{task}_recipe.json")
    figures = {
        "config": config,
        "parameters": metrics["parameters"],
        "minutes": train["seconds_per_step"] * config["train_steps"] / 60,
        "kept_step": train["kept_step"],
        "test": metrics["test"],
        "inspections": _inspections(workdir),
    }
    write_json(path, figures)
    return path


def _inspections(workdir: str) -> list[dict[str, Any]]:
    """Returns the figures of each comparison with an accurate gradient, and the residual at that step."""
    found: dict[int, dict[str, Any]] = {}
    for row in Curves(os.path.join(workdir, "curves.jsonl")).rows:
        found.setdefault(row["step"], {}).update(row)
    return [
        {name: row.get(name) for name in ("step", *_FORMS)}
        for row in found.values()
        if "gradient_cosine" in row
    ]


def section(task: str, run: Mapping[str, Any] | None) -> str:
    """Returns the section of a task; without a run it says so."""
    parts = ["### The recipe alone\n", f"Made by `{command(task)}`.\n"]
    if run is None:
        return "\n".join([*parts, "Not run yet.\n"])
    test = run["test"]
    config = run["config"]
    parts.append(
        f"{run['parameters']:,} parameters, {config['train_steps']:,} steps, about {run['minutes']:.0f} "
        f"min of training; the weights of step {run['kept_step']:,}, the best on validation puzzles. "
        f"{test['examples']:,} test puzzles of each kind; 1 × is {config['max_steps']} evaluations.\n"
    )
    for title, by_budget in {"budget": test["by_budget"], **test.get("by_grade", {})}.items():
        parts.append(_table(title, _without_repetition(by_budget)))
    if "by_size" in test:
        largest = _times(list(test["by_budget"])[-1])
        parts.append(_table(f"size, at {largest}", test["by_size"]))
    for grade, by_starts in test.get("by_starts", {}).items():
        parts.append(_table(f"starts, {grade}", by_starts))
    if run.get("inspections"):
        parts.append(_through_training(run["inspections"]))
    if task in _FURTHER:
        parts.append(f"{_FURTHER[task]}\n")
    return "\n".join(parts)


def _through_training(inspections: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of the gradient in training, and how it was compared."""
    rows = [
        (
            f"{row['step']:,}",
            *("" if row[name] is None else form.format(row[name]) for name, form in _FORMS.items()),
        )
        for row in inspections
    ]
    columns = (
        "step",
        "residual",
        "spectral radius",
        "cosine of the gradient",
        "reference's residual",
    )
    return (
        "In training, at the budget of that step: the mean residual, and the cosine of the angle between the "
        "gradient and that of an accurate solve (16 times the budget, backward by Broyden's method). "
        "A step that the log has no row of lacks the residual.\n\n" + markdown_table(columns, rows)
    )


def _without_repetition(by_budget: Mapping[str, _Figures]) -> dict[str, _Figures]:
    """Returns the rows; the budgets at the end that give equal figures share one."""
    rows = {}
    for budget, figures in by_budget.items():
        if figures == by_budget[list(by_budget)[-1]] and budget != list(by_budget)[-1]:
            return {**rows, f"{_times(budget)} and more": figures}
        rows[_times(budget)] = figures
    return rows


def _times(budget: str) -> str:
    return f"{float(budget):g} ×"


def _table(title: str, rows: Mapping[str, _Figures]) -> str:
    agreed = ("agreed", "right_if_agreed") if any("agreed" in row for row in rows.values()) else ()
    shares = ("exact", "settled", "right_if_settled", "right_if_unsettled", *agreed)
    named = {"right_if_unsettled": "right if not settled", "agreed": "settled and agreed"}
    titles = (named.get(share, share.replace("_", " ")) for share in shares)
    columns = (title, *titles, "mean residual", "mean evaluations")
    cells = [
        (
            name,
            *(f"{100 * row[key]:.1f} %" if key in row else "" for key in shares),
            f"{row['residual']:.1e}",
            f"{row['steps']:,.0f}",
        )
        for name, row in rows.items()
    ]
    return markdown_table(columns, cells)
