"""Pictures of a run: PNG files in its folder, and the same in TensorBoard."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
import numpy as np
import tensorflow as tf

matplotlib.use("Agg")
from matplotlib import pyplot

from tfdeq.programs.workdir import write_atomically, writing
from tfdeq.training.report.plotting import BLUE, GREEN, GREY, LOWEST, ORANGE, defined, tidy
from tfdeq.training.schedule import takeover_step
from tfdeq.training.task import score_of

_BASELINE_STYLES = ((ORANGE, "--"), (GREEN, ":"), (GREY, "-."))


def draw_all(
    workdir: str,
    metrics: Mapping[str, Any],
    baselines: Mapping[str, Mapping[str, Any]],
    residuals: Mapping[str, Any],
    writer: tf.summary.SummaryWriter | None = None,
) -> list[str]:
    """Draws all pictures for which there are results, and returns their paths.

    Args:
        workdir: folder for the PNG files.
        metrics: the run's metrics.json.
        baselines: name -> the curves of each baseline.
        residuals: {"before": trace, "after": trace} of `Evaluator.residual_trace`, or empty.
        writer: TensorBoard writer, or None.
    """
    curves, config = metrics["train"], metrics["config"]
    depth = config["depth"]
    takeover = 0 if depth else takeover_step(config)
    label = f"{depth} explicit application{'s' * (depth > 1)}" if depth else "equilibrium"
    score = score_of(metrics)
    drawings: dict[str, Callable[[Any], None]] = {
        "quality.png": lambda figure: _quality(figure, curves, baselines, takeover, score, label)
    }
    if residuals:
        drawings["residual_by_solver_steps.png"] = lambda figure: _trace(
            figure, residuals, config["max_steps"]
        )
    if not depth:
        drawings["convergence.png"] = lambda figure: _convergence(figure, curves, config, takeover)
    paths = []
    for name, draw in drawings.items():
        path = os.path.join(workdir, name)
        _save(path, draw)
        paths.append(path)
        if writer is not None:
            image = tf.io.decode_png(tf.io.read_file(path), channels=3)
            logs = os.path.join(workdir, "tensorboard")
            step = config["train_steps"]
            with writing(logs, tf.errors.OpError), writer.as_default(step=step):
                tf.summary.image(name.removesuffix(".png"), image[None])
    return paths


def draw_again(
    workdir: str,
    metrics: Mapping[str, Any],
    baselines: Mapping[str, Mapping[str, Any]],
    residuals: Mapping[str, Any],
) -> list[str]:
    """Draws the pictures of a finished run; TensorBoard receives them in a separate file."""
    logs = os.path.join(workdir, "tensorboard")
    with writing(logs, tf.errors.OpError):
        writer = tf.summary.create_file_writer(logs)
    paths = draw_all(workdir, metrics, baselines, residuals, writer)
    with writing(logs, tf.errors.OpError):
        writer.close()
    return paths


def _quality(figure, curves, baselines, takeover, score, label):
    axes = figure.add_subplot()
    unit, direction = score.unit or score.name, "lower" if score.lower_is_better else "higher"
    step, loss = defined(curves, "loss")
    # The loss is in nats, so it can only be converted to scores in nats or bits.
    scale = {"loss": 1.0}.get(score.name, np.log(2) if score.name.startswith("bits_per_") else None)
    if scale is not None:
        axes.plot(step, loss / scale, color=BLUE, alpha=0.35, linewidth=1, label="training batches")
    for (name, baseline), (color, style) in zip(baselines.items(), _BASELINE_STYLES, strict=False):
        axes.plot(*defined(baseline, f"validation_{score.name}"), style, color=color, label=name)
    validation = defined(curves, f"validation_{score.name}")
    axes.plot(*validation, "o-", color=BLUE, markersize=4, label=f"{label}, validation")
    if len(validation[1]) and score.lower_is_better:
        shown = [
            validation[1],
            *(defined(b, f"validation_{score.name}")[1] for b in baselines.values()),
        ]
        low = min(values.min() for values in shown if len(values))
        axes.set_ylim(0.95 * low, 2.2 * low)
    _mark_takeover(axes, takeover)
    axes.set(xlabel="training steps", ylabel=f"{unit} ({direction} is better)")
    axes.set_title(f"What the model has learned: {unit}")
    axes.legend()


def _trace(figure, residuals, budget):
    axes = figure.add_subplot()
    styles = {"before": (ORANGE, "s--", "before training"), "after": (BLUE, "o-", "after training")}
    for moment, (color, style, label) in styles.items():
        if moment not in residuals:
            continue
        values = np.array(residuals[moment]["residual"])
        if not np.median(values[-1]):
            label += " (nothing to solve yet)"  # the weights of the state start at zero
        values = np.maximum(values, LOWEST)
        steps = residuals[moment]["steps"]
        axes.plot(steps, np.median(values, axis=1), style, color=color, markersize=4, label=label)
        axes.fill_between(steps, values.min(axis=1), values.max(axis=1), color=color, alpha=0.2)
    axes.axvline(budget, color=GREY, linewidth=1, linestyle=":")
    axes.annotate(" budget", (budget, 1), xycoords=("data", "axes fraction"), va="top", color=GREY)
    axes.set_yscale("log")
    axes.set(xlabel="evaluations of the cell", ylabel="relative residual ‖f(z) − z‖ / ‖f(z)‖")
    axes.set_title("How far from equilibrium: median and range over validation examples")
    axes.legend()


def _convergence(figure, curves, config, takeover):
    upper, lower = figure.subplots(2, 1, sharex=True)
    for prefix, color, style, label in (
        ("", BLUE, "-", "forward"),
        ("backward_", ORANGE, "--", "backward"),
    ):
        upper.plot(*defined(curves, f"{prefix}residual"), style, color=color, label=label)
        lower.plot(*defined(curves, f"{prefix}steps"), style, color=color, label=label)
    step, residual = defined(curves, "validation_residual")
    upper.plot(step, residual, "o", color=GREEN, markersize=4, label="forward, validation")
    upper.axhline(config["tolerance"], color=GREY, linewidth=1, linestyle=":", label="tolerance")
    upper.set_yscale("log")
    upper.set_ylabel("mean relative residual")
    upper.set_title("Convergence through training")
    lower.set(xlabel="training steps", ylabel="mean solver steps", ylim=(0, None))
    for axes in (upper, lower):
        _mark_takeover(axes, takeover)
        axes.legend()


def _mark_takeover(axes, step):
    if step:
        axes.axvline(step, color=GREY, linewidth=1, linestyle=":")
        axes.annotate(
            " equilibrium takes over",
            (step, 0.02),
            xycoords=("data", "axes fraction"),
            color=GREY,
            fontsize=8,
        )


def _save(path: str, draw: Callable[[Any], None]) -> None:
    figure = pyplot.figure(figsize=(8, 5), dpi=120, layout="constrained")
    try:
        draw(figure)
        for axes in figure.axes:
            tidy(axes)
        write_atomically(path, figure.savefig)
    finally:
        pyplot.close(figure)
