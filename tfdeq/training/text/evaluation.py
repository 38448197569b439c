"""Evaluation of a sequence model on windows or segments of text."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.data.segments import evaluation_segments
from tfdeq.data.windows import evaluation_windows, window_count
from tfdeq.models.token_model import TokenModel
from tfdeq.training.evaluation import Budget, Evaluator, Rows
from tfdeq.training.task import CallSettings

# Name of the measure of mean nats per target.
NATS = "nats"


def sequence_evaluator(
    model: TokenModel,
    batches: Any,
    figures: Callable[[Mapping[str, float]], dict[str, float]],
    jit_compile: bool = True,
    remembers: bool = False,
) -> Evaluator:
    """Returns the evaluator of a sequence model on batches of text.

    Args:
        model: its explicit_steps decide whether it is solved or applied; a model without an equilibrium
            has no residual, no steps and a single budget.
        batches: (tokens, targets), both [B, T], all of the same shape; or (tokens, targets, weights),
            with weights [B, T] of the targets in the mean. A row whose weights are all zero does not
            count.
        figures: {"nats": mean nats per target} -> name -> number, proportional to the nats.
        jit_compile: whether XLA compiles the evaluation.
        remembers: whether the rows of a batch continue those of the previous batch, so that the model's
            memory is passed on.
    """
    budget = None
    if model.equilibrium is not None:
        steps = model.explicit_steps or model.equilibrium.solver.max_steps
        budget = Budget(steps, explicit=bool(model.explicit_steps))
    return Evaluator(
        functools.partial(sequence_rows, model),
        batches,
        figures,
        budget=budget,
        jit_compile=jit_compile,
        carried=model.initial_memory if remembers else None,
        item="tokens",
    )


def sequence_rows(model: TokenModel, batch: Any, settings: CallSettings, carried: Any) -> Rows:
    """Returns a model's results for a batch of `sequence_evaluator`; carried: its memory, or ()."""
    tokens, targets, *weights = batch
    weights = weights[0] if weights else tf.ones(targets.shape)
    given: dict[str, Any] = {"targets": targets, "training": settings.training}
    remembers = bool(tf.nest.flatten(carried))
    if remembers:
        given["memory"] = carried
    if model.equilibrium is not None:
        given.update(
            max_steps=settings.max_steps,
            explicit_steps=settings.explicit_steps,
            return_solution=True,
        )
    found = model(tokens, **given)
    found = list(found) if isinstance(found, tuple) else [found]
    memory = found.pop() if remembers else ()
    nats, *solution = found
    return Rows(
        sums={NATS: tf.reduce_sum(tf.math.multiply_no_nan(nats, weights), axis=1)},
        weight=tf.reduce_sum(weights, axis=1),
        predictions=tf.reduce_sum(tf.cast(weights > 0, tf.int32), axis=1),
        solution=solution[0] if solution else None,
        carried=memory,
    )


def token_evaluator(
    model: TokenModel,
    tokens: np.ndarray,
    unit: str,
    windows: int | None = None,
    batch_size: int = 32,
    jit_compile: bool = True,
) -> Evaluator:
    """Returns the evaluator of non-overlapping windows of a token stream.

    Args:
        tokens: [N] the stream of validation or test.
        unit: "byte" or "word": bits_per_byte, or bits_per_word and perplexity.
        windows: number of windows, spread evenly over the stream, or all if it has fewer. None: all, so
            that every token but the first is predicted once.
        batch_size: largest number of windows at a time.

    Raises:
        ValueError: if the stream is shorter than one window.
    """
    length = model.sequence_length
    count = max(window_count(tokens, length), 1)
    count = count if windows is None else min(windows, count)
    # Batches of the same shape, with as few padding rows in the last one as possible.
    batch_size = -(-count // -(-count // batch_size))
    batches = evaluation_windows(
        tokens, sequence_length=length, batch_size=batch_size, max_windows=windows
    )
    return sequence_evaluator(model, batches, figures_of(unit), jit_compile)


def segment_evaluator(
    model: TokenModel,
    tokens: np.ndarray,
    unit: str,
    sequence_length: int,
    batch_size: int = 8,
    jit_compile: bool = True,
) -> Evaluator:
    """Returns the evaluator of a whole stream, which passes on the model's memory.

    The stream is read in batch_size rows, each from left to right; every token but the first of the
    stream is predicted once.

    Args:
        tokens: [N] the stream of validation or test.
        unit: as in `token_evaluator`.
        sequence_length: number of tokens in a segment. batch_size: number of rows.
    """
    batches = evaluation_segments(
        tokens,
        sequence_length=sequence_length,
        batch_size=max(1, min(batch_size, (len(tokens) - 1) // sequence_length)),
    )
    return sequence_evaluator(model, batches, figures_of(unit), jit_compile, remembers=True)


def figures_of(unit: str) -> Callable[[Mapping[str, float]], dict[str, float]]:
    """Returns {"nats": mean nats per target} -> the usual figures for bytes or words.

    A perplexity above the largest number is infinite.
    """

    def figures(means: Mapping[str, float]) -> dict[str, float]:
        nats = means[NATS]
        results = {f"bits_per_{unit}": nats / math.log(2)}
        if unit != "word":
            return results
        return {**results, "perplexity": math.exp(nats) if nats < 709 else math.inf}

    return figures
