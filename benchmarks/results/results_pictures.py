"""The pictures of docs/results.md."""

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib

from benchmarks.results.tables import figure_of

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

_SUFFIXES = {"K": 1e3, "M": 1e6}


def draw_curves(runs: Mapping[str, list[dict[str, Any]]], path: str) -> None:
    """Draws validation quality, and residual and steps of the equilibria, over training.

    Thin lines show residual and steps on the training data.
    """
    figure, axes = _axes(3, (12, 3.6))
    for index, (model, rows) in enumerate(runs.items()):
        color = f"C{index}"
        for number, row in enumerate(rows):
            curves = row["curves"]
            label = model if not number else None
            quality = next(
                f"validation_{n}" for n in ("perplexity", "loss", "bits_per_byte")
                 if f"validation_{n}" in curves
            )  # fmt: skip
            axes[0].plot(*zip(*curves[quality], strict=True), color=color, label=label)
            if row["config"]["depth"]:
                continue
            for axis, name in ((axes[1], "residual"), (axes[2], "steps")):
                trained, validation = curves.get(name, []), curves.get(f"validation_{name}", [])
                if trained:
                    axis.plot(*zip(*trained, strict=True), color=color, linewidth=0.6, alpha=0.6)
                if validation:
                    axis.plot(*zip(*validation, strict=True), color=color, label=label)
    axes[0].set(xlabel="training steps", ylabel=quality.replace("_", " "), yscale="log")
    axes[1].set(xlabel="training steps", ylabel="residual; thin: in training", yscale="log")
    axes[2].set(xlabel="training steps", ylabel="evaluations of the cell; thin: in training")
    _finish(figure, axes, path)


def draw_sizes(
    runs: Mapping[str, list[dict[str, Any]]], published: Iterable[tuple], path: str
) -> None:
    """Draws the project's and the published test figures against the number of parameters.

    Args:
        published: (model, parameters, figure, …) as printed, for example ("TCN", "16K", "2.7e-5").
    """
    figure, axes = _axes(1, (6.5, 4))
    for index, (model, rows) in enumerate(runs.items()):
        values = [figure_of(row["test"])[1] for row in rows]
        sizes = [row["parameters"] for row in rows]
        axes[0].plot(sizes, values, "o", color=f"C{index}", label=model)
    for index, (model, parameters, value, *_) in enumerate(published):
        size = float(parameters[:-1]) * _SUFFIXES[parameters[-1]]
        label = f"published: {model}"
        axes[0].plot(size, float(value), "x", color=f"C{len(runs) + index}", label=label)
    name, _ = figure_of(rows[0]["test"])
    axes[0].set(xlabel="parameters", ylabel=f"test {name}", xscale="log", yscale="log")
    _finish(figure, axes, path)


def draw_memory(rows: list[dict[str, Any]], path: str) -> None:
    """Draws memory and seconds of a training step against depth, with a line for the equilibrium."""
    figure, axes = _axes(2, (9, 3.6))
    explicit = [row for row in rows if row["depth"]]
    own = next(row for row in rows if not row["depth"])
    depths = [row["depth"] for row in explicit]
    for axis, name, unit in ((axes[0], "bytes", 2**20), (axes[1], "seconds", 1.0)):
        axis.plot(depths, [row[name] / unit for row in explicit], "o-", label="applications")
        axis.axhline(own[name] / unit, color="C1", label="the equilibrium")
        axis.set(xlabel="applications of the cell", xscale="log", yscale="log")
    axes[0].set(ylabel="MiB of a training step")
    axes[1].set(ylabel="seconds of a training step")
    _finish(figure, axes, path)


def _axes(columns: int, size: tuple[float, float]):
    figure, axes = pyplot.subplots(
        1, columns, figsize=size, dpi=110, layout="constrained", squeeze=False
    )
    return figure, axes[0]


def _finish(figure, axes, path: str) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        if axis.has_data():
            axis.legend(frameon=False, fontsize=8)
        for line in (axis.xaxis, axis.yaxis):
            low, high = sorted(line.get_view_interval())
            # For less than two powers of ten, a few plain numbers are easier to read.
            if line.get_scale() == "log" and high < 100 * low and low > 0.01:
                line.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
                plain = ticker.StrMethodFormatter("{x:g}")
                line.set_major_formatter(plain if high < 1e4 else ticker.EngFormatter(sep=""))
                line.set_minor_locator(ticker.NullLocator())
    figure.savefig(path)
    pyplot.close(figure)
