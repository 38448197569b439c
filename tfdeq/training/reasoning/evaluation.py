"""Evaluation on puzzles: exact answers, correct places, and whether converged answers are correct."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfdeq import Solution, best_of
from tfdeq.data.examples import Split, evaluation_examples
from tfdeq.models import Reasoner
from tfdeq.runs.measures import CROSS_ENTROPY, per_example
from tfdeq.training.evaluation import Budget, Evaluator, Rows
from tfdeq.training.task import CallSettings

# Largest number of places in the puzzles that are solved at the same time.
_PLACES = 16384
_MOST_PUZZLES = 256
_loss = per_example(CROSS_ENTROPY)


class PuzzleRows:
    """Calls a model on puzzles; both for the training loss and for the evaluator.

    Args:
        model: the model.
        starts: number of solves of each puzzle; with several, the answer is chosen as in `best_of`, and
            the steps are those of all solves. Not for training.
        noise: standard deviation of all starts except the first.
    """

    def __init__(self, model: Reasoner, starts: int = 1, noise: float = 1.0):
        self._model, self._starts, self._noise = model, starts, noise

    def solved(
        self, inputs: tf.Tensor, settings: CallSettings, z0: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, Solution]:
        """Returns logits [B, places, classes] and the solution for puzzles [B, places], starting at z0."""
        return self._model(
            inputs,
            z0=z0,
            max_steps=settings.max_steps,
            explicit_steps=settings.explicit_steps,
            return_solution=True,
            training=settings.training,
        )

    def __call__(self, batch: Any, settings: CallSettings, carried: Any) -> Rows:
        """Returns the model's results for a batch (inputs, targets, weights)."""
        inputs, targets, weights = map(tf.convert_to_tensor, batch)
        agreed = None
        if self._starts > 1:
            best = best_of(self._model, inputs, self._starts, settings.max_steps, noise=self._noise)
            logits, agreed = best.outputs, best.agreement > 0.5
            solution = Solution(best.outputs, best.residual, best.steps, best.status)
        else:
            logits, solution = self.solved(inputs, settings)
        sums = {"exact": exact(targets, logits), "places": places(targets, logits)}
        sums["loss"] = _loss(targets, logits)
        sums |= _shares("settled", solution.converged, sums["exact"])
        if agreed is not None:
            sums |= _shares("agreed", solution.converged & agreed, sums["exact"])
        return Rows(
            sums={name: weights * values for name, values in sums.items()},
            weight=weights,
            predictions=tf.cast(weights > 0, tf.int32),
            solution=None if settings.explicit_steps else solution,
            carried=carried,
        )


def _shares(name: str, chosen: tf.Tensor, right: tf.Tensor) -> dict[str, tf.Tensor]:
    chosen = tf.cast(chosen, tf.float32)
    return {name: chosen, f"{name}_exact": chosen * right}


def exact(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns [B] float32, 1 if the answer is correct at every place."""
    return tf.reduce_min(_right(targets, logits), axis=range(1, len(targets.shape)))


def places(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns [B] float32, the share of places at which the answer is correct."""
    return tf.reduce_mean(_right(targets, logits), axis=range(1, len(targets.shape)))


def _right(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) == targets, tf.float32)


def puzzle_evaluator(
    model: Reasoner,
    split: Split,
    config: Mapping[str, Any],
    budgets: Sequence[float],
    starts: int = 1,
) -> Evaluator:
    """Returns the evaluator of a model on puzzles.

    Its figures: `exact`, the share of puzzles with a correct answer at every place; `places`, the share
    of correct places; `loss`, nats per place; `settled`, the share of puzzles whose solve met the
    tolerance; `right_if_settled` and `right_if_unsettled`, the shares of correct answers among these
    and among the others, omitted if there are none. With several starts also `agreed`, the share of
    puzzles whose solve met the tolerance and whose answer more than half of the starts reached, and
    `right_if_agreed`.

    Args:
        budgets: multiples of the usual number of steps. starts: number of solves of each puzzle; see
            `PuzzleRows`.
    """
    size = split[0][0].size
    batches = evaluation_examples(split, min(_MOST_PUZZLES, max(1, _PLACES // (size * starts))))
    steps = config["depth"] or config["max_steps"]
    return Evaluator(
        PuzzleRows(model, starts, config["start_noise"] or 1.0),
        batches,
        _figures if not config["depth"] else _figures_of_applications,
        budget=Budget(steps, explicit=bool(config["depth"])),
        # XLA does not support solves by blocks, so puzzles larger than the run's are not compiled.
        jit_compile=config["jit_compile"] and not (config["block"] and size > places_of(model)),
        budgets=budgets,
    )


def places_of(model: Reasoner) -> int:
    """Returns the number of places in a puzzle of the size that a model was built for."""
    return math.prod(model.input_places)


def _figures(means: Mapping[str, float]) -> dict[str, float]:
    means = dict(means)
    settled, right = means.pop("settled"), means.pop("settled_exact")
    agreed, agreed_right = means.pop("agreed", None), means.pop("agreed_exact", 0.0)
    figures = {**means, "settled": settled, **({} if agreed is None else {"agreed": agreed})}
    if settled > 0:
        figures["right_if_settled"] = right / settled
    if settled < 1:
        figures["right_if_unsettled"] = (means["exact"] - right) / (1 - settled)
    if agreed:
        figures["right_if_agreed"] = agreed_right / agreed
    return figures


def _figures_of_applications(means: Mapping[str, float]) -> dict[str, float]:
    """Returns the figures of explicit applications, without those of a solve."""
    return {name: means[name] for name in ("exact", "places", "loss")}
