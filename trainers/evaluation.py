"""Held-out evaluation of a sequence model: quality, residual and steps at any budget."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.models import LanguageModel
from trainers.data import evaluation_windows

BUDGETS = (0.5, 1.0, 2.0, 4.0)  # multiples of the solver's max_steps
TRACE_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)


def next_token_loss(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """[B, T, V], [B, T] -> [B, T], −ln p(target), in nats."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=logits)


class Evaluator:
    """Evaluates a model on held-out batches.

    Args:
        model: the language model; its explicit_steps decide whether it is solved or applied.
        batches: (tokens, targets), both [B, T], all of one shape.
        figures: mean nats per target -> name -> number, what the results are called.
        jit_compile: whether XLA compiles the evaluation.
    """

    def __init__(
        self,
        model: LanguageModel,
        batches: Iterable[tuple[tf.Tensor, tf.Tensor]],
        figures: Callable[[float], dict[str, float]],
        jit_compile: bool = True,
    ):
        self._model = model
        self._batches = list(batches)
        self._figures = figures
        self._jit_compile = jit_compile
        self._compiled: dict[int, Callable[..., Any]] = {}

    def evaluate(self, budget: float = 1.0) -> dict[str, float]:
        """Returns the figures, residual and steps.

        Args:
            budget: multiple of the solver's max_steps (of the applications, for an explicit model);
                rounded, at least one step.
        """
        explicit = self._model.explicit_steps
        steps = explicit or self._model.equilibrium.solver.max_steps
        steps = max(1, round(budget * steps))
        sums = [self._run(inputs, targets, steps) for inputs, targets in self._batches]
        nats, residual, used = (float(np.mean([row[i] for row in sums])) for i in range(3))
        return {**self._figures(nats), "residual": residual, "steps": used}

    def by_budget(self) -> dict[str, dict[str, float]]:
        """Returns `evaluate` at ½, 1, 2 and 4 times the budget: {"0.5": {…}, …}."""
        return {str(budget): self.evaluate(budget) for budget in BUDGETS}

    def results(self) -> dict[str, Any]:
        """Returns what metrics.json holds as `test`: `evaluate`, with `by_budget` beside it."""
        by_budget = self.by_budget()
        return {**by_budget["1.0"], "by_budget": by_budget}

    def residual_trace(self, examples: int = 16) -> dict[str, list[Any]]:
        """Returns the residuals of some windows after 1, 2, … evaluations of the cell.

        All budgets are solved in one batch: each row has a max_steps of its own.

        Returns:
            {"steps": [K], "residual": [K][examples]}.
        """
        inputs = tf.concat([batch[0] for batch in self._batches], axis=0)[:examples]
        examples = inputs.shape[0]
        budgets = tf.repeat(tf.constant(TRACE_STEPS), examples)
        tokens = tf.tile(inputs, [len(TRACE_STEPS), 1])
        _, solution = self._model(
            tokens, tolerance=1e-12, max_steps=budgets, explicit_steps=0, return_solution=True
        )
        residual = solution.residual.numpy().reshape(len(TRACE_STEPS), examples)
        return {"steps": list(TRACE_STEPS), "residual": residual.tolist()}

    def _run(self, inputs: tf.Tensor, targets: tf.Tensor, steps: int) -> list[float]:
        # A solve takes its budget as a tensor: one graph for all. Applications are written out.
        explicit_steps = steps if self._model.explicit_steps else 0
        if explicit_steps not in self._compiled:
            self._compiled[explicit_steps] = tf.function(
                lambda inputs, targets, max_steps: self._evaluate_batch(
                    inputs, targets, max_steps, explicit_steps
                ),
                jit_compile=self._jit_compile,
                autograph=False,
            )
        results = self._compiled[explicit_steps](inputs, targets, tf.constant(steps))
        return [float(value) for value in results]

    def _evaluate_batch(self, inputs, targets, max_steps, explicit_steps):
        logits, solution = self._model(
            inputs,
            max_steps=max_steps,
            explicit_steps=explicit_steps,
            return_solution=True,
            training=False,
        )
        nats = tf.reduce_mean(next_token_loss(logits, targets))
        steps = tf.reduce_mean(tf.cast(solution.steps, tf.float32))
        return nats, tf.reduce_mean(solution.residual), steps


def token_evaluator(
    model: LanguageModel,
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

    def figures(nats: float) -> dict[str, float]:
        results = {f"bits_per_{unit}": nats / math.log(2)}
        return {**results, "perplexity": math.exp(nats)} if unit == "word" else results

    return Evaluator(model, batches, figures, jit_compile)
