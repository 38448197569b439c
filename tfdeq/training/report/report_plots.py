"""The plots of the report as standalone SVG, with one line per run."""

import dataclasses
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatter, NullLocator

from tfdeq.training.report.plotting import (
    BLUE,
    GOLD,
    GREEN,
    LOWEST,
    ORANGE,
    PURPLE,
    SKY,
    defined,
    tidy,
)
from tfdeq.training.report.report_run import SOLVE, Run, scores

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, GOLD)
_DASHES = ((), (5, 2), (1, 1.5), (6, 2, 1, 2))
_MOST_IN_LEGEND = 8
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Placeholder for the text colour until the SVG is written; no line has this colour.
_INK = "#010203"
_STYLE = "<style>svg{color:#1c1c1c}@media(prefers-color-scheme:dark){svg{color:#e4e4e4}}</style>"
_SETTINGS = {
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "tfdeq",  # equal plots give equal files
    "text.parse_math": False,  # a folder's name may contain a dollar sign
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    ),
    "grid.color": _INK,
}

# Column -> title, caption, whether the axis is logarithmic. Columns of the validation data come
# second.
_CURVES = {
    "loss": ("Loss", "Mean loss of the training batches since the row before.", False),
    "residual": (
        "Residual, forward",
        "Mean relative residual of the forward solves in training; circles: on validation data.",
        True,
    ),
    "backward_residual": (
        "Residual, backward",
        "Mean relative residual of the backward solves in training.",
        True,
    ),
    "steps": (
        "Solver steps, forward",
        "Mean solver steps of an example in training; circles: on validation data.",
        False,
    ),
    "backward_steps": (
        "Solver steps, backward",
        "Mean steps of the backward solve of an example in training.",
        False,
    ),
    "spectral_radius": (
        "Spectral radius",
        "Of the cell's Jacobian, the largest of a few examples; below 1 plain iteration converges.",
        False,
    ),
    "gradient_cosine": (
        "Cosine of the gradient",
        "Of the training's gradient and that of a tight implicit solve, on a few examples; 1 is exact.",
        False,
    ),
    "learning_rate": ("Learning rate", "Learning rate of the optimiser.", False),
    "gradient_norm": ("Gradient norm", "Global norm of the gradient, before it is clipped.", True),
}


@dataclasses.dataclass(frozen=True)
class Plot:
    """A picture and its description: title, caption, and the values at its ends."""

    title: str
    caption: str
    alt: str
    svg: str


def line_style(index: int) -> tuple[str, tuple[float, ...]]:
    """Returns the colour and the dashes for the run with an index."""
    return _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]


def curve_plots(runs: Sequence[Run]) -> list[Plot]:
    """Draws every curve over the training steps that any run has."""
    validation = dict.fromkeys(
        name
        for run in runs
        for name in run.curves
        if name.startswith("validation_") and name.removeprefix("validation_") not in SOLVE
    )
    described = {"loss": _CURVES["loss"]}
    for name in validation:
        score = words(name.removeprefix("validation_"))
        described[name] = f"Validation {score}", f"Validation {score} during training.", False
    described |= _CURVES
    plots = []
    for name, (title, caption, logarithmic) in described.items():
        lines = {index: defined(run.curves, name) for index, run in enumerate(runs)}
        points = {}
        if name in SOLVE:
            points = {i: defined(run.curves, f"validation_{name}") for i, run in enumerate(runs)}
        if any(len(steps) for steps, _ in lines.values()):
            plots.append(
                _plot(runs, title, caption, "training steps", lines, logarithmic, points=points)
            )
    return plots


def budget_plots(runs: Sequence[Run]) -> list[Plot]:
    """Draws each figure of quality against the multiple of the step budget."""
    names = dict.fromkeys(
        name for run in runs for row in run.by_budget.values() for name in scores(row)
    )
    plots = []
    for name in names:
        lines = {}
        for index, run in enumerate(runs):
            row = {"step": list(run.by_budget), name: [r.get(name) for r in run.by_budget.values()]}
            lines[index] = defined(row, name)
        budgets = sorted({float(x) for steps, _ in lines.values() for x in steps if x > 0})
        if budgets:
            plots.append(
                _plot(
                    runs,
                    f"{capitalized(words(name))} by budget",
                    f"Test {words(name)} at multiples of the solver's step budget.",
                    "× the step budget",
                    lines,
                    finish=lambda axes, budgets=budgets: _budget_axis(axes, budgets),
                )
            )
    return plots


def words(name: str) -> str:
    """Returns the name of a column as words that every font and file can represent."""
    return printable(name.replace("_", " ")).strip() or "?"


def capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def printable(text: str) -> str:
    """Replaces characters that XML cannot contain, such as control characters and lone surrogates."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _plot(
    runs: Sequence[Run],
    title: str,
    caption: str,
    label: str,
    lines: dict[int, tuple[np.ndarray, np.ndarray]],
    logarithmic: bool = False,
    points: dict[int, tuple[np.ndarray, np.ndarray]] | None = None,
    finish: Callable[[Any], None] = lambda axes: None,
) -> Plot:
    def draw(figure):
        axes = figure.add_subplot()
        for index, (steps, values) in lines.items():
            color, dashes = line_style(index)
            values = np.maximum(values, LOWEST) if logarithmic else values
            pattern = (0, dashes) if dashes else "-"
            marker = "o" if len(steps) <= 20 else None
            axes.plot(steps, values, marker=marker, markersize=3, color=color, linestyle=pattern)
            validation, there = (points or {}).get(index, ((), ()))
            there = np.maximum(there, LOWEST) if logarithmic else there
            axes.plot(validation, there, "o", markersize=4, color=color, fillstyle="none")
        axes.set_xlabel(label)
        if logarithmic:
            axes.set_yscale("log")
            # Plain digits, because the usual labels of powers are formulas, which are switched off.
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
        finish(axes)
        tidy(axes)
        _legend(figure, runs, [index for index, (steps, _) in lines.items() if len(steps)])

    ends = []
    for index, (steps, values) in lines.items():
        if len(steps):
            first, last = (f"{values[i]:.3g} at {steps[i]:g}" for i in (0, -1))
            ends.append(f"{printable(runs[index].name)}: {first} to {last}")
    alt = f"Line plot of {title[:1].lower()}{title[1:]} over {label}. {'; '.join(ends)}."
    return Plot(title, caption, alt, _svg(draw))


def _budget_axis(axes: Any, budgets: list[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(budgets))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _legend(figure: Any, runs: Sequence[Run], shown: list[int]) -> None:
    """Names the lines below the axes, unless there is a single run or too many, which the table names."""
    if len(runs) == 1 or len(shown) > _MOST_IN_LEGEND:
        return
    handles, labels = [], []
    for index in shown:
        color, dashes = line_style(index)
        handles.append(Line2D([], [], color=color, linestyle=(0, dashes) if dashes else "-"))
        name = printable(runs[index].name)
        # The end of a name distinguishes runs. A label that begins with an underscore would be
        # omitted.
        name = name if len(name) <= 40 else f"…{name[-39:]}"
        labels.append(f" {name}" if name.startswith("_") else name)
    columns = 2 if max(map(len, labels), default=0) <= 20 else 1
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False)


def _svg(draw: Callable[[Any], None]) -> str:
    """Returns a figure as SVG with a transparent background, and text for light and dark pages."""
    file = io.StringIO()
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # The browser has characters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(5.4, 3.6), layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    return re.sub(r"(<svg[^>]*>)", lambda match: match[1] + _STYLE, text, count=1)
