"""Draws the pictures of docs/concepts: small problems, each of which shows one idea.

python -m benchmarks.engine.concept_pictures --plots=docs/concepts

All of them are f(z) = tanh(z W) + x, where W is a random orthogonal matrix times a gain. Where tanh is
almost linear, the gain is about the spectral radius of the Jacobian.
"""

import os
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import tensorflow as tf
from absl import flags

import tfdeq
from benchmarks.engine.solver_curves import STYLES
from tfdeq.programs import program

matplotlib.use("Agg")
from matplotlib import pyplot

FLAGS = flags.FLAGS

_UNITS = 32
_TOLERANCE = 1e-4


def _cell(gain: float) -> tuple[Callable[..., tf.Tensor], tf.Tensor]:
    """Returns f(z, x, w) and its weights [units, units], float64."""
    noise = np.random.default_rng(0).normal(size=(_UNITS, _UNITS))
    return lambda z, x, w: tf.tanh(z @ w) + x, tf.constant(gain * np.linalg.qr(noise)[0])


def _inputs(rows: int, scale: float, seed: int = 1) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=(rows, _UNITS))


def budget() -> dict[str, np.ndarray]:
    """Returns the residuals of all iterates up to the tolerance, for three samples of one batch."""
    f, w = _cell(0.95)
    scales = {"large input": 2.0, "medium input": 0.5, "small input": 0.1}
    x = tf.constant(_inputs(3, 1.0) * np.array(list(scales.values()))[:, None])
    solution = tfdeq.fixed_point(
        f,
        tf.zeros_like(x),
        (x, w),
        "fixed_point_iteration",
        tolerance=_TOLERANCE,
        max_steps=200,
        trace=True,
    )
    steps, trace = solution.steps.numpy(), solution.trace.numpy()
    return {name: trace[row, : steps[row]] for row, name in enumerate(scales)}


def gradient(counts: list[int]) -> dict[str, list[float]]:
    """Returns, for each adjoint, the relative error of the gradient of x by products or applications."""
    f, w = _cell(0.9)
    x = tf.constant(_inputs(8, 0.2))

    def error_of(adjoint, reference=None, **limits):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = tfdeq.fixed_point(
                f, tf.zeros_like(x), (x, w), "broyden", adjoint, 1e-12, 100, **limits
            ).z
            loss = tf.reduce_sum(z**2)
        found = tape.gradient(loss, x)
        return (
            found if reference is None else float(tf.norm(found - reference) / tf.norm(reference))
        )

    exact = error_of("implicit", backward_tolerance=1e-12, backward_max_steps=200)
    return {
        "Implicit, k products": [
            error_of("implicit", exact, backward_tolerance=1e-15, backward_max_steps=k)
            for k in counts
        ],
        "PhantomGradient, k steps": [
            error_of(tfdeq.PhantomGradient(k, damping=1.0), exact) for k in counts
        ],
        "PhantomGradient, k steps, damping 0.5": [
            error_of(tfdeq.PhantomGradient(k, damping=0.5), exact) for k in counts
        ],
    }


def stability(gains: list[float], most: int) -> dict[str, list[float]]:
    """Returns, for each solver, the largest residual after `most` evaluations, by gain."""
    x = tf.constant(_inputs(8, 0.1))
    found: dict[str, list[float]] = {
        name: [] for name in ("fixed_point_iteration", "anderson", "broyden")
    }
    for gain in gains:
        f, w = _cell(gain)
        for name in found:
            solution = tfdeq.fixed_point(
                f, tf.zeros_like(x), (x, w), name, tolerance=1e-12, max_steps=most
            )
            found[name].append(float(tf.reduce_max(solution.residual)))
    return found


def warm_starts(frames: int) -> dict[str, list[float]]:
    """Returns the mean evaluations for each frame of a slowly changing input, from zeros and warm starts."""
    f, w = _cell(0.9)
    start, end = _inputs(8, 0.5), _inputs(8, 0.5, seed=2)
    found: dict[str, list[float]] = {"from zeros": [], "from the last equilibrium": []}
    last = tf.zeros([8, _UNITS], tf.float64)
    for frame in range(frames):
        angle = 0.01 * frame
        x = tf.constant(np.cos(angle) * start + np.sin(angle) * end)
        for name, z0 in zip(found, (tf.zeros_like(x), last), strict=True):
            solution = tfdeq.fixed_point(
                f, z0, (x, w), tfdeq.Anderson(max_steps=100, tolerance=_TOLERANCE)
            )
            found[name].append(float(np.mean(solution.steps)))
        last = solution.z
    return found


def draw(
    lines: dict[str, Any],
    across: Any,
    path: str,
    xlabel: str,
    ylabel: str,
    logarithmic: bool = True,
    level: float | None = None,
) -> None:
    """Draws name -> values against `across`, or against 1, 2, 3, … if that is None."""
    figure = pyplot.figure(figsize=(7.0, 4.0), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for place, (name, values) in enumerate(lines.items()):
        # A solver has the same colour in all pictures.
        color, marker = STYLES.get(name) or list(STYLES.values())[place + 2]
        places = np.arange(1, len(values) + 1) if across is None else across
        axes.plot(
            places, values, color=color, marker=marker, markersize=4, label=name.replace("_", " ")
        )
    if level is not None:
        axes.axhline(level, color="#666666", linestyle="--", label=f"tolerance {level:g}")
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if logarithmic else "linear")
    if not logarithmic:
        axes.set_ylim(bottom=0)
    if across is None:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    os.makedirs(FLAGS.plots, exist_ok=True)
    place = lambda name: os.path.join(FLAGS.plots, name)  # noqa: E731
    lines = budget()
    print("evaluations:", {name: len(values) for name, values in lines.items()})
    draw(lines, None, place("budget.png"), "evaluations", "relative residual", level=_TOLERANCE)
    counts = [1, 2, 4, 8, 16, 32]
    lines = gradient(counts)
    print("error of the gradient:", lines)
    draw(lines, counts, place("gradient.png"), "k", "relative error of the gradient")
    gains = [0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 1.5]
    lines = stability(gains, 30)
    print("residual after 30 evaluations:", lines)
    draw(
        lines, gains, place("stability.png"), "gain of the weights", "residual after 30 evaluations"
    )
    lines = warm_starts(20)
    print("evaluations by frame:", lines)
    draw(
        lines,
        None,
        place("warm_starts.png"),
        "frame",
        "evaluations, mean over samples",
        logarithmic=False,
    )


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    flags.DEFINE_string("plots", "docs/concepts", "Folder for the pictures.")


if __name__ == "__main__":
    define_flags()
    program.run(main)
