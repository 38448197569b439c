"""The report as a single HTML page without other files, network access or JavaScript."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfdeq.training.report.plotting import number
from tfdeq.training.report.report_html import (
    breakable,
    document,
    escape,
    figures,
    residual,
    rounded,
    section,
    table,
    text,
)
from tfdeq.training.report.report_plots import (
    budget_plots,
    capitalized,
    curve_plots,
    line_style,
    words,
)
from tfdeq.training.report.report_run import Run, mapping, scores


def page(runs: Sequence[Run], made: str) -> str:
    """Returns the page.

    Args:
        runs: the runs, in the order of tables and colours.
        made: the time at which the report is made, as text.
    """
    names = ", ".join(run.name for run in runs)
    title = (
        f"Training report: {names}" if len(runs) <= 3 else f"Training report of {len(runs)} runs"
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>Made {escape(made)}.</p>",
        section("Runs", _runs(runs)),
        section("Curves", figures(curve_plots(runs), "No run has a curve yet.")),
        section("Quality by step budget", *_budgets(runs)),
        section("Flags", *_flags(runs)),
        section("Environment", _environment(runs)),
    ]
    return document(title, body)


def _runs(runs: Sequence[Run]) -> str:
    """Returns the table of runs; a column without values is omitted."""
    columns: dict[str, list[Any]] = {
        "state": [run.state for run in runs],
        "steps": [_steps(run) for run in runs],
    }
    for name in _names(run.test for run in runs):
        columns[f"test {words(name)}"] = [run.test.get(name) for run in runs]
    columns |= {
        "test standard error": [run.test.get("standard_error") for run in runs],
        "examples tested": [run.test.get("examples") for run in runs],
        "residual at the budget": [residual(run.test.get("residual")) for run in runs],
        "solver steps at the budget": [run.test.get("steps") for run in runs],
        "best step (validation score)": [_best(run) for run in runs],
        "skipped steps": [_skipped(run) for run in runs],
        "rollbacks": [_scalar(run, "rollbacks") for run in runs],
        "seconds per step": [_scalar(run, "seconds_per_step") for run in runs],
        "peak memory (MiB)": [rounded(run.train.get("peak_memory_mib")) for run in runs],
        "parameters": [_parameters(run) for run in runs],
    }
    columns = {name: cells for name, cells in columns.items() if any(c is not None for c in cells)}
    heads = [_run_head(run, index) for index, run in enumerate(runs)]
    rows = list(zip(heads, zip(*columns.values(), strict=True), strict=True))
    caption = (
        "The runs. Test figures are of data that neither training nor the choice of the best step saw; "
        "the standard error is of the first of them, over the examples."
    )
    return table(caption, ["Run", *map(capitalized, columns)], rows, kind="numbers")


def _steps(run: Run) -> str | float | None:
    planned = number(run.config.get("train_steps"))
    if run.is_finished and run.step in (0, planned):
        return planned
    return run.step if planned is None else f"{run.step:,} of {text(planned)}"


def _best(run: Run) -> str | None:
    best = mapping(run.train.get("best"))
    step, score = number(best.get("step")), number(best.get("score"))
    if step is None:
        return None
    return text(step) if score is None else f"{text(step)} ({text(score)})"


def _skipped(run: Run) -> float | None:
    known = number(run.train.get("all_skipped_steps"))
    rows = [number(value) for value in run.curves.get("skipped_steps") or ()]
    counts = [count for count in rows if count is not None]
    return known if known is not None or not counts else sum(counts)


def _scalar(run: Run, name: str) -> float | None:
    """Returns the value in metrics.json, or in the last row of the curves."""
    known = number(run.train.get(name))
    return run.last(name) if known is None else known


def _parameters(run: Run) -> float | None:
    places = (mapping(run.metrics), run.train)
    return next((n for place in places if (n := number(place.get("parameters"))) is not None), None)


def _budgets(runs: Sequence[Run]) -> list[str]:
    names = _names(row for run in runs for row in run.by_budget.values())
    rows = []
    for index, run in enumerate(runs):
        for budget, row in run.by_budget.items():
            cells = [f"{budget:g} ×", *(row.get(name) for name in names)]
            rows.append(
                (_run_head(run, index), [*cells, residual(row.get("residual")), row.get("steps")])
            )
    if not rows:
        return ["<p>No run has been tested at several budgets.</p>"]
    heads = [
        "Run",
        "Budget",
        *(f"Test {words(name)}" for name in names),
        "Residual",
        "Solver steps",
    ]
    caption = "Test figures at multiples of the solver's step budget, without further training."
    return [figures(budget_plots(runs), ""), table(caption, heads, rows, kind="numbers")]


def _flags(runs: Sequence[Run]) -> list[str]:
    names = sorted({name for run in runs for name in run.config})
    if not names:
        return ["<p>No run has recorded its flags.</p>"]

    def rows(chosen):
        return [
            (breakable(f"--{name}"), [_flag(run.config, name) for run in runs]) for name in chosen
        ]

    heads = ["Flag", *(run.name for run in runs)]
    if len(runs) == 1:
        return [table("The flags of the run.", heads, rows(names))]
    differing = [name for name in names if len({_flag(run.config, name) for run in runs}) > 1]
    same = [name for name in names if name not in differing]
    parts = ["<p>The runs have the same flags.</p>"]
    if differing:
        parts = [table("The flags whose values differ.", heads, rows(differing))]
    if same:
        values = [(breakable(f"--{name}"), [_flag(runs[0].config, name)]) for name in same]
        shown = table("The flags that are the same.", ["Flag", "Every run"], values)
        summary = f"The {len(same)} flags that are the same"
        parts.append(f"<details>\n<summary>{summary}</summary>\n{shown}\n</details>")
    return parts


def _flag(config: Mapping[str, Any], name: str) -> str:
    """Returns a flag's value as on a command line."""
    if name not in config:
        return "not recorded"
    value = config[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _environment(runs: Sequence[Run]) -> str:
    facts = [_facts(run) for run in runs]
    names = list(dict.fromkeys(name for found in facts for name in found))
    if not names:
        return "<p>No run has recorded its environment.</p>"
    rows = [(breakable(name), [found.get(name) for found in facts]) for name in names]
    caption = "Versions, commit and devices. An arrow stands where a resumed run met another one."
    return table(caption, ["Fact", *(run.name for run in runs)], rows)


def _facts(run: Run) -> dict[str, Any]:
    """Returns name -> values from the starts of a run, each different value once."""
    starts = [mapping(start) for start in run.starts]
    if not starts:
        return {}
    found: dict[str, list[str]] = {}
    for start in starts:
        commit = mapping(start.get("commit"))
        devices = mapping(start.get("devices")).items()
        command = start.get("command")
        told = {
            "Python": start.get("python"),
            **mapping(start.get("packages")),
            "Commit": f"{str(commit['hash'])[:12]}{' and changes' * bool(commit.get('changed'))}"
            if commit.get("hash")
            else None,
            "Devices": ", ".join(f"{count} {kind}" for kind, count in devices) or None,
            "Platform": start.get("platform"),
            "Command": shlex.join(map(str, command)) if isinstance(command, list) else None,
        }
        for name, value in told.items():
            if value is not None:
                found.setdefault(name, []).append(str(value))
    return {
        "Started first": starts[0].get("started"),
        "Number of starts": len(starts),
        **{name: " → ".join(dict.fromkeys(values)) for name, values in found.items()},
    }


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the figures of quality in any of the rows."""
    return list(dict.fromkeys(name for row in rows for name in scores(row)))


def _run_head(run: Run, index: int) -> str:
    """Returns a run's name and a sample of its line in the plots."""
    color, dashes = line_style(index)
    dashes = " ".join(f"{2 * length:g}" for length in dashes)
    return (
        f'{breakable(run.name)}<svg width="48" height="6" aria-hidden="true"><line x1="0" y1="3" x2="48" '
        f'y2="3" stroke="{color}" stroke-width="3" stroke-dasharray="{dashes or "none"}"/></svg>'
    )
