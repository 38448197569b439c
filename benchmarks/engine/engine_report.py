"""The benchmark's results as Markdown tables and plots; see `benchmarks.engine.speed`."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib

from benchmarks.results.tables import markdown_table

matplotlib.use("Agg")
from matplotlib import pyplot

# Okabe and Ito's colours, which colour-blind readers can distinguish.
COLORS = {
    "tfdeq": "#0072B2",
    "lower bound": "#009E73",
    "TorchDEQ": "#D55E00",
    "JAXopt": "#E69F00",
    "Optimistix": "#CC79A7",
    "explicit layers": "#000000",
}
MODES = {"fixed": "20 + 20 steps", "tolerance": "to relative tolerance 1e-3"}
_TOLERANCE = 1e-3

EXPLANATION = """
A training step is the forward solve, the loss, and the gradients of all weights and of the input, without
an optimiser. All frameworks have the same weights and inputs, in float32, and the same number of threads.
tfdeq and the lower bound are compiled by XLA (`jit_compile=True`), or run by `tf.function` alone where
the table says "graph". JAX is compiled by `jax.jit`. TorchDEQ runs eagerly, as in its documentation.
s/step is the median over the rounds. The ratio is to the faster of the two lower bounds. Where the
fastest round is far below the median, other work was using the machine.

- **evaluations, products**: applications of f and products with its Jacobian (transposed, except in
  Newton's inner solves) in a training step. They are counted in a separate run inside the cell, so they
  include each library's linearisations: for most, two evaluations more than the solve's own. JAXopt's
  Anderson and Broyden evaluate f once more at their start; the compiler drops evaluations whose results
  are not used.
- **residuals**: of z = f(z) and of u = Jᵀu + ∂L/∂z, for the worst sample, computed afterwards from z and
  u by the same formula for all. For TorchDEQ it is the residual of f(z), where z is the iterate at which
  its solver stopped, because f(z) is what it returns.
- **gradient error**: the largest relative distance of a gradient from that of the converged reference.
- **lower bound**: only evaluations in a loop without a norm, one linearisation, products, and the product
  that gives the gradients, compiled in the same way. To a tolerance, the bound has as many of each as the
  run of tfdeq with the fewest.
- Variants that take more than three seconds at fixed steps are timed in three rounds, and are not run to
  a tolerance.
- At fixed steps no solver may stop early; each uses 20 evaluations of its own.
- To a tolerance, tfdeq and TorchDEQ stop when every sample's relative residual is at most 1e-3. JAXopt,
  Optimistix and GMRES have other tests: each gets the loosest setting, found by trial beforehand, that
  reaches 1e-3 in every sample. A row marked † missed the tolerance within 40 steps.
"""


def family(row: Mapping[str, Any]) -> str:
    """Returns the name of a row's library, the key of its colour."""
    if row["solver"].startswith("bound"):
        return "lower bound"
    return row["solver"].split()[0] if row["worker"] == "JAX" else row["worker"]


def label(row: Mapping[str, Any]) -> str:
    """Returns a row's name for readers."""
    if family(row) == "lower bound":
        return row["solver"].replace("bound", "lower bound")
    solver = row["solver"] if row["worker"] == "JAX" else f"{row['worker']} {row['solver']}"
    return solver.replace("_", " ")


def work(row: Mapping[str, Any]) -> int:
    """Returns the number of evaluations and products in a training step."""
    return row["evaluations"] + row["products"]


def reached(row: Mapping[str, Any]) -> bool:
    """Whether a run met its tolerance, forward and backward."""
    # A library's own float32 residual may differ from this one in the last digits.
    limit = 1.01 * _TOLERANCE
    return row["forward_residual"] <= limit and row["backward_residual"] <= limit


def fewest_evaluations(rows: Iterable[Mapping[str, Any]], worker: str) -> Mapping[str, Any] | None:
    """Returns a worker's run that reached the tolerance with the fewest evaluations and products, or None."""
    runs = [
        row
        for row in rows
        if row["worker"] == worker
        and row["mode"] == "tolerance"
        and family(row) != "lower bound"
        and "error" not in row
        and reached(row)
    ]
    return min(runs, key=work, default=None)


def table(result: Mapping[str, Any], mode: str) -> str:
    """Returns a case's rows of one mode as a Markdown table, fastest first."""
    rows = [row for row in result["rows"] if row["mode"] == mode]
    bounds = [row for row in rows if family(row) == "lower bound" and "error" not in row]
    bound = min((row["median_seconds"] for row in bounds), default=None)
    columns = (
        *("", "s/step (fastest round)", "/ lower bound", "evaluations + products"),
        *("residuals", "gradient error"),
    )
    cells = []
    for row in sorted(rows, key=lambda row: row.get("median_seconds", float("inf"))):
        name = f"**{label(row)}**" if family(row) == "tfdeq" else label(row)
        if "error" in row:
            text = row["error"].replace("|", "/")
            text = text if text.startswith("not run") else f"failed: {text}"
            cells.append((name, text, *"––––"))
            continue
        mark = (
            " †"
            if mode == "tolerance" and family(row) != "lower bound" and not reached(row)
            else ""
        )
        ratio = f"{row['median_seconds'] / bound:.2f}" if bound else "–"
        time = f"{row['median_seconds']:.4g} ({min(row['seconds']):.4g})"
        work = f"{row['evaluations']} + {row['products']}"
        residuals = f"{row['forward_residual']:.1e}, {row['backward_residual']:.1e}"
        cells.append((name + mark, time, ratio, work, residuals, f"{row['gradient_error']:.1e}"))
    for name, reason in result["missing"].items():
        cells.append((name, reason.replace("|", "/"), *"––––"))
    return markdown_table(columns, cells)


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns, for each case and mode, the ratios of the times of tfdeq's and each peer's fastest runs."""
    peers = ("lower bound", "TorchDEQ", "JAXopt", "Optimistix")
    columns = ["case", "mode", "tfdeq's fastest", "s/step", *(f"/ {peer}" for peer in peers)]
    cells = []
    for name, result in results.items():
        for mode, text in MODES.items():
            best = {kind: _fastest(result["rows"], mode, kind) for kind in ("tfdeq", *peers)}
            own = best["tfdeq"]
            if own is None:
                continue
            ratios = [
                f"{own['median_seconds'] / best[peer]['median_seconds']:.2f}" if best[peer] else "–"
                for peer in peers
            ]
            fastest = own["solver"].replace("_", " "), f"{own['median_seconds']:.4g}"
            cells.append((name.replace("_", " "), text, *fastest, *ratios))
    return markdown_table(columns, cells)


def _fastest(rows, mode, kind):
    """Returns the fastest run of a library; in the mode "tolerance", of those that reached it."""
    runs = [
        row
        for row in rows
        if row["mode"] == mode
        and family(row) == kind
        and "error" not in row
        and (mode == "fixed" or kind == "lower bound" or reached(row))
    ]
    return min(runs, key=lambda row: row["median_seconds"], default=None)


def draw_times(results: Mapping[str, Mapping[str, Any]], mode: str, path: str) -> None:
    """Draws the seconds per step of every run in a mode, with one panel per case."""
    panels = {
        name: [row for row in result["rows"] if row["mode"] == mode and "error" not in row]
        for name, result in results.items()
    }
    heights = [max(1, len(rows)) for rows in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(9, 1.2 + 0.3 * sum(heights)),
        dpi=110,
        layout="constrained",
        squeeze=False,
        height_ratios=heights,
    )
    for axis, (name, rows) in zip(axes[:, 0], panels.items(), strict=True):
        rows = sorted(rows, key=lambda row: -row["median_seconds"])
        for height, row in enumerate(rows):
            axis.barh(height, row["median_seconds"], color=COLORS[family(row)])
            missed = mode == "tolerance" and family(row) != "lower bound" and not reached(row)
            text = f" {row['median_seconds']:.3g}" + (" †" if missed else "")
            axis.text(row["median_seconds"], height, text, va="center", fontsize=8)
        axis.set_yticks(range(len(rows)), [label(row) for row in rows], fontsize=8)
        axis.set_title(f"{name.replace('_', ' ')}: {results[name]['description']}", fontsize=9)
        axis.set_xscale("log")
        axis.margins(x=0.1)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("seconds per training step, logarithmic (lower is better)")
    figure.suptitle(f"A training step, {MODES[mode]}")
    figure.savefig(path)
    pyplot.close(figure)


def memory_table(memory: Mapping[str, Any]) -> str:
    """Returns the peak memory of each variant as a Markdown table."""
    cells = []
    for row in memory["rows"]:
        value = f"{row['bytes'] / 2**20:.1f}" if "bytes" in row else f"failed: {row['error']}"
        cells.append((row["name"].replace("_", " "), row["steps"], value))
    return markdown_table(("", "layers or steps", "peak MiB"), cells)


def draw_memory(memory: Mapping[str, Any], path: str) -> None:
    """Draws peak memory against the depth of explicit layers and the budget of solvers."""
    figure = pyplot.figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    styles = iter(("-", "--", ":", "-.") * 4)
    rows = [row for row in memory["rows"] if "bytes" in row]
    for name in dict.fromkeys(row["name"] for row in rows):
        points = sorted((row["steps"], row["bytes"] / 2**20) for row in rows if row["name"] == name)
        color = next((c for key, c in COLORS.items() if name.startswith(key)), "#56B4E9")
        axes.plot(*zip(*points, strict=True), next(styles), marker="o", color=color, label=name)
    axes.set(xlabel="explicit layers, or steps at most", ylabel="peak MiB of a training step")
    axes.set_ylim(bottom=0)
    axes.set_title(f"Peak memory: {memory['description']}", fontsize=10)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    pyplot.close(figure)


def write(
    document: str, results: Mapping[str, Mapping[str, Any]], memory: Mapping[str, Any] | None
) -> None:
    """Writes the document, and its plots next to it, named after it."""
    os.makedirs(os.path.dirname(document) or ".", exist_ok=True)
    stem = os.path.splitext(document)[0]
    parts = [
        "# tfdeq against its peers",
        "Made by `benchmarks.engine.speed` and `benchmarks.engine.memory`, which `make bench` runs.",
    ]
    if results:
        parts += [_setting(next(iter(results.values()))), EXPLANATION.strip()]
        parts += ["## tfdeq's fastest against each peer's fastest", summary(results)]
        for mode, text in MODES.items():
            plot = f"{stem}_{mode}.png"
            draw_times(results, mode, plot)
            parts += [
                f"## Training step, {text}",
                f"![Seconds of a training step, each library beside the lower bound: {text}]"
                f"({os.path.basename(plot)})",
            ]
            for name, result in results.items():
                agreement = ", ".join(f"{k} {v:.1e}" for k, v in result["agreement"].items())
                parts += [
                    f"### {name.replace('_', ' ')}: {result['description']}",
                    f"Converged outputs and gradients differ from tfdeq's by: {agreement or '–'}. "
                    f"Rounds: {result['rounds']}.",
                    table(result, mode),
                ]
    if memory:
        draw_memory(memory, f"{stem}_memory.png")
        parts += [
            "## Peak memory of a training step",
            memory["explanation"],
            f"![Peak memory of a training step against depth]({os.path.basename(stem)}_memory.png)",
            memory_table(memory),
        ]
    with open(document, "w", encoding="utf-8") as file:
        file.write("\n\n".join(part.strip() for part in parts) + "\n")


def _setting(result: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    warning = "**A smoke run at tiny sizes: its times mean nothing.** " if result["quick"] else ""
    return f"{warning}{result['processor']}, {result['threads']} threads; {versions}."
