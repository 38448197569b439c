"""Pictures of how an answer settles: an animation of a grid, or for a line places over evaluations."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import tensorflow as tf

matplotlib.use("Agg")
from matplotlib import animation, pyplot
from matplotlib.colors import LogNorm

from tfdeq.data.puzzles import Puzzle
from tfdeq.models import Reasoner
from tfdeq.programs.workdir import write_atomically
from tfdeq.training.report.plotting import BLUE, GREEN, ORANGE

_FRAMES = 60
_LAST_FRAMES = 12  # number of still frames at the end
_PER_SECOND = 12
_LEAST = 1e-6  # smallest move that is shown


class Settling(NamedTuple):
    """The solve of one puzzle by plain iteration, after 1, 2, … K evaluations."""

    probability: np.ndarray  # [K, places, classes]
    moved: np.ndarray  # [K, places], relative distance that a place moved in that evaluation
    residual: np.ndarray  # [K], relative


def record(model: Reasoner, inputs: Any, max_steps: int, tolerance: float) -> Settling:
    """Solves one puzzle [places] until the residual meets the tolerance, and records every state."""
    inputs = tf.constant(inputs)[None]
    x, _ = model.embed(inputs)
    z = tf.cast(model.start(x), tf.float32)

    @tf.function(autograph=False)
    def apply(z):
        image = tf.cast(model.applied(z, inputs), tf.float32)
        moved, size = tf.norm(image - z, axis=-1), tf.norm(image, axis=-1)
        probability = tf.nn.softmax(model.read(image))
        return image, probability[0], (moved / (size + _LEAST))[0], tf.norm(moved) / tf.norm(size)

    kept = []
    for _ in range(max_steps):
        z, *found = apply(z)
        kept.append([part.numpy() for part in found])
        if kept[-1][-1] <= tolerance:
            break
    return Settling(*(np.stack(part) for part in zip(*kept, strict=True)))


def draw(puzzle: Puzzle, inputs: np.ndarray, settling: Settling, folder: str) -> str:
    """Writes settling.gif for a grid, or settling.png for a line, to a folder, and returns its path.

    For a grid, the picture shows the puzzle with the model's answer, and how far every place still
    moves. For a line, it shows both over evaluations, from top to bottom.
    """
    if puzzle.rank == 1:
        path = os.path.join(folder, "settling.png")
        figure = _line(settling)
        write_atomically(path, lambda own: figure.savefig(own, format="png"))
    else:
        path = os.path.join(folder, "settling.gif")
        figure, animated = _grid(puzzle, inputs, settling)
        writer = animation.PillowWriter(fps=_PER_SECOND)
        write_atomically(path, lambda own: animated.save(own, writer=writer))
    pyplot.close(figure)
    return path


def _line(settling: Settling) -> Any:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.5), dpi=120, layout="constrained")
    shown = {"aspect": "auto", "interpolation": "nearest"}
    left.imshow(settling.probability[..., -1], cmap="RdBu", vmin=0, vmax=1, **shown)
    left.set_title("Answer at every place: blue 1, red 0")
    _moves(figure, right, settling.moved, **shown)
    for axes in (left, right):
        axes.set(xlabel="place", ylabel="evaluations of the cell")
    return figure


def _moves(figure: Any, axes: Any, moved: np.ndarray, **shown: Any) -> Any:
    image = axes.imshow(
        np.maximum(moved, _LEAST), cmap="inferno", norm=LogNorm(_LEAST, 1.0), **shown
    )
    axes.set_title("How far each place still moves")
    figure.colorbar(image, ax=axes, shrink=0.8)
    return image


def _grid(puzzle: Puzzle, inputs: np.ndarray, settling: Settling) -> tuple[Any, Any]:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4.4), dpi=100, layout="constrained")
    painted = _DRAWN.get(puzzle.name, _paint)(left, inputs)
    moves = _moves(figure, right, settling.moved[0])
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
    count = len(settling.residual)
    shown = np.unique(np.linspace(0, count - 1, min(_FRAMES, count)).round().astype(int))
    frames = [*shown, *[shown[-1]] * _LAST_FRAMES]

    def update(index):
        painted(settling.probability[index])
        moves.set_data(np.maximum(settling.moved[index], _LEAST))
        residual = settling.residual[index]
        left.set_title(f"After {index + 1} evaluations, residual {residual:.1e}")

    return figure, animation.FuncAnimation(figure, update, frames, blit=False)


def _paint(axes: Any, inputs: np.ndarray) -> Callable[[np.ndarray], None]:
    """Draws the probability of the last class, dark at empty places of the puzzle."""
    image = axes.imshow(np.zeros(inputs.shape), cmap="Blues", vmin=0, vmax=1)
    axes.imshow(np.where(inputs == 0, 0.25, np.nan), cmap="Greys", vmin=0, vmax=1)
    return lambda probability: image.set_data(probability[..., -1])


def _maze(axes: Any, inputs: np.ndarray) -> Callable[[np.ndarray], None]:
    """Draws walls, start, goal, and the path that the model has found so far."""
    wall, _, start, goal = range(4)
    image = axes.imshow(np.zeros(inputs.shape), cmap="Blues", vmin=0, vmax=1)
    axes.imshow(np.where(inputs == wall, 1.0, np.nan), cmap="Greys", vmin=0, vmax=1.15)
    for token, color in ((start, GREEN), (goal, ORANGE)):
        row, column = np.argwhere(inputs == token)[0]
        axes.plot(column, row, "s", color=color, markersize=max(2, 120 / len(inputs)))
    return lambda probability: image.set_data(probability[..., 1])


def _sudoku(axes: Any, inputs: np.ndarray) -> Callable[[np.ndarray], None]:
    """Draws givens in black, and answers in blue, paler if the model is not sure."""
    size = len(inputs)
    axes.imshow(np.zeros(inputs.shape), cmap="Greys", vmin=0, vmax=1)
    for edge in range(size + 1):
        width = 2.0 if edge % 3 == 0 else 0.5
        axes.axhline(edge - 0.5, color="black", linewidth=width)
        axes.axvline(edge - 0.5, color="black", linewidth=width)
    texts = {}
    for (row, column), given in np.ndenumerate(inputs):
        color = "black" if given else BLUE
        texts[row, column] = axes.text(
            column, row, str(given or ""), ha="center", va="center", fontsize=15, color=color
        )

    def update(probability):
        for place, text in texts.items():
            if not inputs[place]:
                text.set_text(str(1 + int(probability[place].argmax())))
                text.set_alpha(float(np.clip(probability[place].max(), 0.15, 1.0)))

    return update


_DRAWN = {"maze": _maze, "sudoku": _sudoku}
