"""Held-out evaluation of a sequence model: quality, residual and steps at any budget."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.models import LanguageModel
from tfdeq.models.token_model import TokenModel
from trainers.data import evaluation_segments, evaluation_windows

BUDGETS = (0.5, 1.0, 2.0, 4.0)  # multiples of the solver's max_steps
TRACE_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)


class Evaluator:
    """Evaluates a model on held-out batches.

    Args:
        model: the language model. Of a `LanguageModel`, its explicit_steps decide whether it is solved
            or applied; other models have no residual, no steps and one budget.
        batches: (tokens, targets), both [B, T], all of one shape; or (tokens, targets, weights), with
            weights [B, T] of the targets in the mean.
        figures: mean nats per target -> name -> number, what the results are called.
        jit_compile: whether XLA compiles the evaluation.
        remembers: whether the rows of a batch go on with those of the batch before: the model's memory
            is handed on.
    """

    def __init__(
        self,
        model: TokenModel,
        batches: Iterable[tuple[tf.Tensor, ...]],
        figures: Callable[[float], dict[str, float]],
        jit_compile: bool = True,
        remembers: bool = False,
    ):
        self._model = model
        self._batches = list(batches)
        self._figures = figures
        self._jit_compile = jit_compile
        self._remembers = remembers
        self._compiled: dict[int, Callable[..., Any]] = {}

    def evaluate(self, budget: float = 1.0) -> dict[str, float]:
        """Returns the figures, residual and steps.

        Args:
            budget: multiple of the solver's max_steps (of the applications, for an explicit model);
                rounded, at least one step.
        """
        steps = max(1, round(budget * self._usual_steps()))
        memory = self._model.initial_memory(len(self._batches[0][0])) if self._remembers else None
        rows = []
        for tokens, targets, *weights in self._batches:
            weights = weights[0] if weights else tf.ones(targets.shape)
            row, memory = self._run(tokens, targets, weights, memory, steps)
            rows.append([float(value) for value in row])
        nats, weight, residual, used = (np.array(column) for column in zip(*rows, strict=True))
        results = self._figures(float(nats.sum() / weight.sum()))
        if not isinstance(self._model, LanguageModel):
            return results
        return {**results, "residual": float(residual.mean()), "steps": float(used.mean())}

    def by_budget(self) -> dict[str, dict[str, float]]:
        """Returns `evaluate` at ½, 1, 2 and 4 times the budget: {"0.5": {…}, …}."""
        budgets = BUDGETS if isinstance(self._model, LanguageModel) else (1.0,)
        return {str(budget): self.evaluate(budget) for budget in budgets}

    def results(self) -> dict[str, Any]:
        """Returns what metrics.json holds as `test`: `evaluate`, with `by_budget` beside it."""
        by_budget = self.by_budget()
        return {**by_budget["1.0"], "by_budget": by_budget}

    def residual_trace(self, examples: int = 16) -> dict[str, list[Any]]:
        """Returns the residuals of some rows after 1, 2, … evaluations of the cell.

        All budgets are solved in one batch: each row has a max_steps of its own. Texts are read as if
        they began there.

        Returns:
            {"steps": [K], "residual": [K][examples]}.
        """
        inputs = tf.concat([batch[0] for batch in self._batches], axis=0)[:examples]
        examples = inputs.shape[0]
        budgets = tf.repeat(tf.constant(TRACE_STEPS), examples)
        tokens = tf.tile(inputs, [len(TRACE_STEPS), 1])
        # Not by the model's call: it would compute the logits of all rows too.
        solution = self._model.equilibrium(
            self._model.embed(tokens), tolerance=1e-12, max_steps=budgets, return_solution=True
        )
        residual = solution.residual.numpy().reshape(len(TRACE_STEPS), examples)
        return {"steps": list(TRACE_STEPS), "residual": residual.tolist()}

    def _usual_steps(self) -> int:
        if not isinstance(self._model, LanguageModel):
            return 1
        return self._model.explicit_steps or self._model.equilibrium.solver.max_steps

    def _run(self, tokens, targets, weights, memory, steps: int) -> tuple[list[tf.Tensor], Any]:
        # A solve takes its budget as a tensor: one graph for all. Applications are counted in it.
        explicit_steps = steps if getattr(self._model, "explicit_steps", 0) else 0
        if explicit_steps not in self._compiled:
            self._compiled[explicit_steps] = tf.function(
                lambda *arguments: self._evaluate_batch(*arguments, explicit_steps),
                jit_compile=self._jit_compile,
                autograph=False,
            )
        compiled = self._compiled[explicit_steps]
        return compiled(tokens, targets, weights, memory, tf.constant(steps))

    def _evaluate_batch(self, tokens, targets, weights, memory, max_steps, explicit_steps):
        """[summed nats, summed weights, mean residual, mean steps], and the memory."""
        settings = {"targets": targets, "training": False}
        if memory is not None:
            settings["memory"] = memory
        if isinstance(self._model, LanguageModel):
            settings.update(
                max_steps=max_steps, explicit_steps=explicit_steps, return_solution=True
            )
        found = self._model(tokens, **settings)
        found = list(found) if isinstance(found, tuple) else [found]
        memory = found.pop() if memory is not None else None
        nats = tf.reduce_sum(weights * found[0])
        residual = steps = tf.zeros(())
        if len(found) > 1:
            residual = tf.reduce_mean(found[1].residual)
            steps = tf.reduce_mean(tf.cast(found[1].steps, tf.float32))
        return [nats, tf.reduce_sum(weights), residual, steps], memory


def token_evaluator(
    model: TokenModel,
    tokens: np.ndarray,
    unit: str,
    batch_size: int = 32,
    windows: int = 256,
    jit_compile: bool = True,
) -> Evaluator:
    """Returns the evaluator of evenly spread windows of a token stream.

    Args:
        tokens: [N] the held-out stream.
        unit: "byte" or "word": bits_per_byte, or bits_per_word and perplexity.
        batch_size: windows at a time. windows: how many in all, at most.

    Raises:
        ValueError: if the stream is shorter than one window. A batch is never larger than the
            stream allows.
    """
    length = model.sequence_length
    available = max((len(tokens) - 1) // length, 1)
    batch_size = min(batch_size, available, windows)
    batches = evaluation_windows(
        tokens, sequence_length=length, batch_size=batch_size, max_windows=windows
    )
    return Evaluator(model, batches, figures_of(unit), jit_compile)


def segment_evaluator(
    model: TokenModel,
    tokens: np.ndarray,
    unit: str,
    sequence_length: int,
    batch_size: int = 8,
    jit_compile: bool = True,
) -> Evaluator:
    """Returns the evaluator of a whole stream, with the model's memory handed on.

    The stream is read in batch_size rows, each from its left to its right; every token but the first
    of the stream is predicted once.

    Args:
        tokens: [N] the held-out stream.
        unit: as in `token_evaluator`.
        sequence_length: tokens of a segment. batch_size: rows.
    """
    batches = evaluation_segments(
        tokens,
        sequence_length=sequence_length,
        batch_size=max(1, min(batch_size, (len(tokens) - 1) // sequence_length)),
    )
    return Evaluator(model, batches, figures_of(unit), jit_compile, remembers=True)


def figures_of(unit: str) -> Callable[[float], dict[str, float]]:
    """Mean nats per target -> the figures that are usual for bytes or words.

    A perplexity beyond the largest number is infinite.
    """

    def figures(nats: float) -> dict[str, float]:
        results = {f"bits_per_{unit}": nats / math.log(2)}
        if unit != "word":
            return results
        return {**results, "perplexity": math.exp(nats) if nats < 709 else math.inf}

    return figures
