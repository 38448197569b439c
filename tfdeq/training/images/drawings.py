"""What a trained classifier takes for what: a table, and pictures with their residuals."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import matplotlib
import numpy as np
import tensorflow as tf

matplotlib.use("Agg")
from matplotlib import pyplot

from tfdeq import SolveScope
from tfdeq.data.examples import Split, evaluation_examples
from tfdeq.programs.workdir import write_atomically, write_json
from tfdeq.solution import combined

_BATCH = 64
_SHOWN = 12  # pictures of right and of wrong answers each


class Answers(NamedTuple):
    """What a model says of N pictures."""

    answer: np.ndarray  # [N] int, the class
    residual: np.ndarray  # [N], of the solve; NaN where nothing is solved


def answers(
    model: keras.Model, split: Split, prepare: Callable[[Any], Any], config: Mapping[str, Any]
) -> Answers:
    """Returns a model's answers for a split, at its usual budget."""

    @tf.function(autograph=False, jit_compile=config["jit_compile"])
    def run(pictures):
        with SolveScope(compaction=False) as scope:
            logits = model(prepare(pictures), training=False)
        solution = combined(scope.solutions.values())
        answer = tf.argmax(logits, axis=-1, output_type=tf.int32)
        nothing = tf.fill(tf.shape(answer), float("nan"))
        return answer, nothing if solution is None else solution.residual

    found = []
    for pictures, _, weights in evaluation_examples(split, _BATCH):
        found.append([part.numpy()[weights > 0] for part in run(tf.constant(pictures))])
    return Answers(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def confusion(targets: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """Returns [classes, classes]: how many pictures of class i are taken for class j."""
    table = np.zeros((classes, classes), int)
    np.add.at(table, (targets, found), 1)
    return table


def draw_all(workdir: str, split: Split, found: Answers, classes: Sequence[str]) -> None:
    """Writes confusion.json, confusion.png and pictures.png into a run's folder."""
    table = confusion(split[1], found.answer, len(classes))
    write_json(
        os.path.join(workdir, "confusion.json"),
        {"classes": list(classes), "confusion": table.tolist()},
    )
    _save(os.path.join(workdir, "confusion.png"), lambda figure: _confusion(figure, table, classes))
    _save(
        os.path.join(workdir, "pictures.png"),
        lambda figure: _pictures(figure, split, found, classes),
    )


def _confusion(figure: Any, table: np.ndarray, classes: Sequence[str]) -> None:
    axes = figure.add_subplot()
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(classes))
    axes.set_xticks(places, classes, rotation=45, ha="right")
    axes.set_yticks(places, classes)
    if len(classes) <= 20:  # more numbers could not be read
        for row in places:
            for column in places:
                color = "white" if shares[row, column] > 0.5 else "black"
                if table[row, column]:
                    text = str(table[row, column])
                    axes.text(column, row, text, ha="center", va="center", color=color, size=8)
    axes.set(xlabel="answer", ylabel="class")
    right = np.trace(table) / max(table.sum(), 1)
    axes.set_title(f"Test pictures by class and answer: {right:.2%} right")


def _pictures(figure: Any, split: Split, found: Answers, classes: Sequence[str]) -> None:
    """Rows of right answers, then of wrong ones, each with its residual."""
    pictures, targets = split
    right = found.answer == targets
    chosen = [*np.flatnonzero(right)[:_SHOWN], *np.flatnonzero(~right)[:_SHOWN]]
    grid = figure.subplots(4, _SHOWN // 2).flat
    for axes in grid:
        axes.set_axis_off()
    places = [*range(_SHOWN), *range(_SHOWN, 2 * _SHOWN)]
    starts = [*places[: min(right.sum(), _SHOWN)], *places[_SHOWN:]]
    axes_of = list(figure.axes)
    for place, row in zip(starts, chosen, strict=False):
        picture = pictures[row]
        axes_of[place].imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray")
        answer, target = classes[found.answer[row]], classes[targets[row]]
        said = answer if answer == target else f"{answer},\nnot {target}"
        if np.isfinite(found.residual[row]):
            said += f"\nresidual {found.residual[row]:.1e}"
        axes_of[place].set_title(said, size=8)


def _save(path: str, draw: Callable[[Any], None]) -> None:
    figure = pyplot.figure(figsize=(9, 8), dpi=110, layout="constrained")
    try:
        draw(figure)
        write_atomically(path, figure.savefig)
    finally:
        pyplot.close(figure)
