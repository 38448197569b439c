"""The signature `solve` of reasoners, in addition to those of any Keras model."""

from typing import Any

import tensorflow as tf

from tfdeq.best_of import best_of
from tfdeq.models import Reasoner
from tfdeq.serving.signatures.signature import (
    CONVERGENCE,
    SETTING_SPECS,
    SETTINGS,
    Signature,
    Solving,
    answered,
    budget,
    trace,
)

PUZZLE = "puzzle"
SOLVE = "solve"
# Largest number of solves of a puzzle in a request.
MOST_STARTS = 32
STARTS = (
    f"[B] int32: solves of the example from different starts, up to {MOST_STARTS}; not > 0: one. Among "
    "those that met the tolerance the answer is taken that most agree on, of equals the one of the smallest "
    "residual."
)
_OUTPUTS = {
    "answer": "[B, places] int32: the class at every place; -1 outside of the puzzle.",
    "agreement": "[B] float32: share of the starts whose answer is this one.",
}


def puzzle_spec(rank: int) -> tf.TensorSpec:
    """Returns the spec of puzzles of any size.

    Args:
        rank: number of dimensions of the places.
    """
    return tf.TensorSpec([None] * (1 + rank), tf.int32, PUZZLE)


def solve_signature(model: Reasoner, spec: tf.TensorSpec, solving: Solving) -> Signature:
    """Traces `solve`: the answer to a puzzle from one or several starts, with residual and agreement.

    It is never compiled by XLA, because the request determines the number of solves.

    Args:
        spec: spec of the puzzles.
    """

    def solve(**given):
        best = answer(
            model, given[PUZZLE], given["tolerance"], budget(given, solving), given["starts"]
        )
        solved = {name: best[name] for name in CONVERGENCE}
        return answered({name: best[name] for name in _OUTPUTS}, solved)

    starts = tf.TensorSpec([None], tf.int32, "starts")
    function = trace(solve, {PUZZLE: spec, **SETTING_SPECS, "starts": starts})
    inputs = {PUZZLE: puzzle_meaning(model), **SETTINGS, "starts": STARTS}
    return Signature(function, inputs, {**_OUTPUTS, **CONVERGENCE})


def puzzle_meaning(model: Reasoner) -> str:
    """Returns the meaning of the input `puzzle`."""
    return (
        f"[B, places] int32: 0 … {model.tokens - 1}, what stands at each place; -1 where a smaller puzzle "
        "than others of the request has no place."
    )


def answer(
    model: Reasoner, puzzle: Any, tolerance: Any, max_steps: Any, starts: Any
) -> dict[str, tf.Tensor]:
    """Returns name -> value of the outputs of `solve`.

    Args:
        puzzle: [B, places] int32. tolerance, max_steps, starts: [B]; not > 0: the model's own, and one.
    """
    best = best_of(model, puzzle, tf.minimum(starts, MOST_STARTS), max_steps, tolerance)
    classes = tf.argmax(best.outputs, axis=-1, output_type=tf.int32)
    return {
        "answer": tf.where(puzzle >= 0, classes, -1),
        "residual": best.residual,
        "agreement": best.agreement,
        "steps": best.steps,
        "status": best.status,
    }
