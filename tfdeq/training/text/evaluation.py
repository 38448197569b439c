"""Evaluation of a sequence model: quality, residual and steps at any budget."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.data import evaluation_segments, evaluation_windows
from tfdeq.data.windows import window_count
from tfdeq.models import LanguageModel
from tfdeq.models.token_model import TokenModel

BUDGETS = (0.5, 1.0, 2.0, 4.0)  # multiples of the solver's max_steps
TRACE_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)


class Evaluator:
    """Evaluates a model on batches of text that it was not trained on.

    Args:
        model: the language model. Of a `LanguageModel`, its explicit_steps decide whether it is solved
            or applied; other models have no residual, no steps and one budget.
        batches: (tokens, targets), both [B, T], all of one shape; or (tokens, targets, weights), with
            weights [B, T] of the targets in the mean. A row whose weights are all zero does not count.
        figures: mean nats per target -> name -> number, what the results are called. The first one,
            the main figure, is in proportion to the nats.
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
        return self._results(self._rows(budget))

    def by_budget(self) -> dict[str, dict[str, float]]:
        """Returns `evaluate` at ½, 1, 2 and 4 times the budget: {"0.5": {…}, …}."""
        return {budget: self._results(rows) for budget, rows in self._rows_by_budget().items()}

    def results(self) -> dict[str, Any]:
        """Returns what metrics.json holds as `test`.

        That is `evaluate`, and beside it

        - `standard_error` of the main figure: over n rows of mean nats mᵢ and summed weights wᵢ, and
          with m = Σ wᵢ mᵢ / Σ wᵢ, it is √(Σ wᵢ (mᵢ − m)² / Σ wᵢ · n / (n − 1)) / √n, in the figure's
          unit. It takes rows for independent; neighbouring ones of a text resemble each other, which
          makes it a little small. It says nothing of other seeds. Missing with a single row;
        - `examples`: n, the rows that count: windows of a text, or of a memory's rows the segments;
        - `tokens`: predictions that count;
        - `by_budget`.
        """
        rows_by_budget = self._rows_by_budget()
        rows = rows_by_budget["1.0"]
        by_budget = {budget: self._results(each) for budget, each in rows_by_budget.items()}
        return {
            **by_budget["1.0"],
            **self._standard_error(rows),
            "examples": len(rows["weight"]),
            "tokens": int(rows["targets"].sum()),
            "by_budget": by_budget,
        }

    def _rows_by_budget(self) -> dict[str, dict[str, np.ndarray]]:
        budgets = BUDGETS if isinstance(self._model, LanguageModel) else (1.0,)
        # Small budgets may round to the same number of steps.
        of_steps: dict[int, dict[str, np.ndarray]] = {}
        for budget in budgets:
            if self._steps(budget) not in of_steps:
                of_steps[self._steps(budget)] = self._rows(budget)
        return {str(budget): of_steps[self._steps(budget)] for budget in budgets}

    def _rows(self, budget: float) -> dict[str, np.ndarray]:
        """Name -> one value of each row that counts: summed nats, weight, targets, residual, steps."""
        steps = self._steps(budget)
        memory = self._model.initial_memory(len(self._batches[0][0])) if self._remembers else None
        parts = []
        for tokens, targets, *weights in self._batches:
            weights = weights[0] if weights else tf.ones(targets.shape)
            part, memory = self._run(tokens, targets, weights, memory, steps)
            parts.append({name: value.numpy() for name, value in part.items()})
        # In float64: there may be many rows.
        rows = {name: np.concatenate([p[name] for p in parts]).astype(float) for name in parts[0]}
        counts = rows["weight"] > 0
        return {name: values[counts] for name, values in rows.items()}

    def _results(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        results = self._figures(float(rows["nats"].sum() / rows["weight"].sum()))
        if not isinstance(self._model, LanguageModel):
            return results
        return {**results, **{name: float(rows[name].mean()) for name in ("residual", "steps")}}

    def _standard_error(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        weight, count = rows["weight"], len(rows["weight"])
        if count < 2:
            return {}
        means = rows["nats"] / weight
        mean = (weight * means).sum() / weight.sum()
        variance = (weight * (means - mean) ** 2).sum() / weight.sum() * count / (count - 1)
        error = self._figures(math.sqrt(variance / count))
        return {"standard_error": next(iter(error.values()))}

    def residual_trace(self, examples: int = 16) -> dict[str, list[Any]]:
        """Returns the residuals of some rows after 1, 2, … evaluations of the cell.

        All budgets are solved in one batch: each row has a max_steps of its own. Texts are read as if
        they began there.

        Returns:
            {"steps": [K], "residual": [K][examples]}.
        """
        inputs = tf.concat([_counting_rows(*batch) for batch in self._batches], axis=0)[:examples]
        examples = inputs.shape[0]
        budgets = tf.repeat(tf.constant(TRACE_STEPS), examples)
        tokens = tf.tile(inputs, [len(TRACE_STEPS), 1])
        # Not by the model's call: it would compute the logits of all rows too.
        solution = self._model.equilibrium(
            self._model.embed(tokens), tolerance=1e-12, max_steps=budgets, return_solution=True
        )
        residual = solution.residual.numpy().reshape(len(TRACE_STEPS), examples)
        return {"steps": list(TRACE_STEPS), "residual": residual.tolist()}

    def _steps(self, budget: float) -> int:
        if not isinstance(self._model, LanguageModel):
            return 1
        usual = self._model.explicit_steps or self._model.equilibrium.solver.max_steps
        return max(1, round(budget * usual))

    def _run(
        self, tokens, targets, weights, memory, steps: int
    ) -> tuple[dict[str, tf.Tensor], Any]:
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
        """Name -> [B], as in `_rows`; and the memory."""
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
        rows = {
            "nats": tf.reduce_sum(tf.math.multiply_no_nan(found[0], weights), axis=1),
            "weight": tf.reduce_sum(weights, axis=1),
            "targets": tf.reduce_sum(tf.cast(weights > 0, tf.int32), axis=1),
        }
        if len(found) > 1:
            rows["residual"] = found[1].residual
            rows["steps"] = found[1].steps
        return rows, memory


def _counting_rows(tokens, targets, *weights) -> tf.Tensor:
    """The [B', T] tokens of the rows of a batch that count."""
    del targets
    return tf.boolean_mask(tokens, tf.reduce_any(weights[0] > 0, axis=1)) if weights else tokens


def token_evaluator(
    model: TokenModel,
    tokens: np.ndarray,
    unit: str,
    windows: int | None = None,
    batch_size: int = 32,
    jit_compile: bool = True,
) -> Evaluator:
    """Returns the evaluator of windows of a token stream that do not overlap.

    Args:
        tokens: [N] the stream of validation or test.
        unit: "byte" or "word": bits_per_byte, or bits_per_word and perplexity.
        windows: how many windows, spread evenly over the stream; all where it has no more. None: all,
            so that every token but the first is predicted once.
        batch_size: windows at a time, at most.

    Raises:
        ValueError: if the stream is shorter than one window.
    """
    length = model.sequence_length
    count = max(window_count(tokens, length), 1)
    count = count if windows is None else min(windows, count)
    # Batches of one shape, with as few rows as possible that fill up the last one.
    batch_size = -(-count // -(-count // batch_size))
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
        tokens: [N] the stream of validation or test.
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
