"""Evaluation of any task's model: its measures, residual and steps, at any budget."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdeq import Solution, SolveScope
from tfdeq.training.task import CallSettings

_BUDGETS = (0.5, 1.0, 2.0, 4.0)
TRACE_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
_TRACE_TOLERANCE = 1e-12


class Rows(NamedTuple):
    """A model's results for the B rows of a batch."""

    # measure -> [B], weighted sums over a row's predictions; the main measure first
    sums: Mapping[str, tf.Tensor]
    # [B], total weight of a row's predictions; 0: the row does not count
    weight: tf.Tensor
    # [B] int32, number of a row's predictions that count
    predictions: tf.Tensor
    # of the rows' solves; None if nothing is solved
    solution: Solution | None = None
    # passed on to the next batch, with the same structure as received
    carried: Any = ()


class Budget(NamedTuple):
    """The usual number of steps of a model."""

    steps: int  # evaluations of the cell, or explicit applications
    explicit: bool = False


class Evaluator:
    """Evaluates a model on batches that it was not trained on.

    Args:
        rows: (batch, call settings, carried state of the previous batch) -> `Rows`.
        batches: nests of tensors [B, …], all of the same shape.
        figures: mean of each measure per prediction -> name -> number, the named results. The first
            one, the main figure, is proportional to the first measure.
        budget: the usual budget; None for a model whose number of steps cannot be chosen.
        jit_compile: whether XLA compiles the evaluation.
        carried: (B) -> the carried state for the first batch; the rows of a batch continue those of the
            previous batch. None: batches are independent.
        item: name of a row's predictions in `results`, in the plural, if it has several.
        budgets: multiples of the usual number of steps for `by_budget` and `results`, including 1.
    """

    def __init__(
        self,
        rows: Callable[[Any, CallSettings, Any], Rows],
        batches: Iterable[Any],
        figures: Callable[[Mapping[str, float]], dict[str, float]] = dict,
        *,
        budget: Budget | None = None,
        jit_compile: bool = True,
        carried: Callable[[int], Any] | None = None,
        item: str | None = None,
        budgets: Sequence[float] = _BUDGETS,
    ):
        self._rows_of = rows
        self._batches = list(batches)
        self._figures = figures
        self._budget = budget
        self._jit_compile = jit_compile
        self._carried = carried
        self._item = item
        self._budgets = (1.0,) if budget is None else budgets
        self._compiled: dict[int, Callable[..., Any]] = {}

    def evaluate(self, budget: float = 1.0) -> dict[str, float]:
        """Returns the figures, residual and steps.

        Args:
            budget: multiple of the usual steps; rounded, at least one step.
        """
        return self._results(self._rows(budget))

    def by_budget(self) -> dict[str, dict[str, float]]:
        """Returns `evaluate` at multiples of the budget: {"0.5": {…}, …}."""
        return {budget: self._results(rows) for budget, rows in self._rows_by_budget().items()}

    def results(self) -> dict[str, Any]:
        """Returns the entry `test` of metrics.json.

        It contains the result of `evaluate`, and also

        - `standard_error` of the main figure: for n rows with means mᵢ and weights wᵢ, and with
          m = Σ wᵢ mᵢ / Σ wᵢ, it is √(Σ wᵢ (mᵢ − m)² / Σ wᵢ · n / (n − 1)) / √n, in the figure's unit. It
          assumes independent rows; since neighbouring rows of a text are similar, it is a little too
          small. It does not include the variation between seeds. Missing with a single row;
        - `examples`: n, the number of rows that count: images, windows of a text, or segments with a
          carried memory;
        - the number of predictions that count, under the name of the item, if it has one;
        - `by_budget`.
        """
        rows_by_budget = self._rows_by_budget()
        rows = rows_by_budget["1.0"]
        by_budget = {budget: self._results(each) for budget, each in rows_by_budget.items()}
        return {
            **by_budget["1.0"],
            **self._standard_error(rows),
            "examples": len(rows["weight"]),
            **({self._item: int(rows["predictions"].sum())} if self._item else {}),
            "by_budget": by_budget,
        }

    def residual_trace(self, examples: int = 16) -> dict[str, list[Any]]:
        """Returns the residuals of some rows after 1, 2, … evaluations of the cell.

        Each row is evaluated as if nothing preceded it.

        Returns:
            {"steps": [K], "residual": [K][examples]}.
        """

        def residuals(batch, max_steps):  # not compiled, which would take longer
            settings = CallSettings(0, max_steps, training=False)
            with SolveScope(tolerance=_TRACE_TOLERANCE, max_steps=max_steps):
                rows = self._rows_of(batch, settings, self._start(batch))
            return tf.boolean_mask(rows.solution.residual, rows.weight > 0)

        found: list[list[float]] = [[] for _ in TRACE_STEPS]
        for batch in self._batches:
            if len(found[0]) >= examples:
                break
            part = tf.nest.map_structure(lambda leaf: leaf[:examples], batch)
            for row, steps in zip(found, TRACE_STEPS, strict=True):
                row.extend(residuals(part, tf.constant(steps)).numpy().tolist())
        return {"steps": list(TRACE_STEPS), "residual": [row[:examples] for row in found]}

    def _rows_by_budget(self) -> dict[str, dict[str, np.ndarray]]:
        # Small budgets may round to the same number of steps.
        of_steps: dict[int, dict[str, np.ndarray]] = {}
        for budget in self._budgets:
            if self._steps(budget) not in of_steps:
                of_steps[self._steps(budget)] = self._rows(budget)
        return {str(budget): of_steps[self._steps(budget)] for budget in self._budgets}

    def _rows(self, budget: float) -> dict[str, np.ndarray]:
        """Returns name -> one value for each row that counts, from `Rows`, with residual and steps."""
        steps = self._steps(budget)
        carried = self._start(self._batches[0])
        parts = []
        for batch in self._batches:
            part, carried = self._run(batch, carried, steps)
            parts.append({name: value.numpy() for name, value in part.items()})
        # In float64, because there may be many rows.
        rows = {name: np.concatenate([p[name] for p in parts]).astype(float) for name in parts[0]}
        counts = rows["weight"] > 0
        return {name: values[counts] for name, values in rows.items()}

    def _start(self, batch: Any) -> Any:
        """Returns the carried state for the first batch."""
        return () if self._carried is None else self._carried(tf.nest.flatten(batch)[0].shape[0])

    def _results(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        weight = rows["weight"].sum()
        results = self._figures(
            {name: float(sums.sum() / weight) for name, sums in _measures(rows).items()}
        )
        solve = [name for name in ("residual", "steps") if name in rows]
        return {**results, **{name: float(rows[name].mean()) for name in solve}}

    def _standard_error(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        weight, count = rows["weight"], len(rows["weight"])
        if count < 2:
            return {}
        errors = {}
        for name, sums in _measures(rows).items():
            means = sums / weight
            mean = (weight * means).sum() / weight.sum()
            variance = (weight * (means - mean) ** 2).sum() / weight.sum() * count / (count - 1)
            errors[name] = math.sqrt(variance / count)
        return {"standard_error": next(iter(self._figures(errors).values()))}

    def _steps(self, budget: float) -> int:
        return 1 if self._budget is None else max(1, round(budget * self._budget.steps))

    def _run(self, batch: Any, carried: Any, steps: int) -> tuple[dict[str, tf.Tensor], Any]:
        # A solve takes its budget as a tensor, so one graph serves all budgets. For explicit
        # applications the number is part of the graph.
        explicit_steps = steps if self._budget is not None and self._budget.explicit else 0
        if explicit_steps not in self._compiled:
            self._compiled[explicit_steps] = tf.function(
                lambda *arguments: self._evaluate_batch(*arguments, explicit_steps),
                jit_compile=self._jit_compile,
                autograph=False,
            )
        return self._compiled[explicit_steps](batch, carried, tf.constant(steps))

    def _evaluate_batch(self, batch, carried, max_steps, explicit_steps):
        """Returns name -> [B], as in `_rows`, and the carried state."""
        settings = CallSettings(explicit_steps, max_steps, training=False)
        rows = self._rows_of(batch, settings, carried)
        found = {f"{_SUM}{name}": sums for name, sums in rows.sums.items()}
        found["weight"], found["predictions"] = rows.weight, rows.predictions
        if rows.solution is not None:
            found["residual"], found["steps"] = rows.solution.residual, rows.solution.steps
        return found, rows.carried


_SUM = "sum of "


def _measures(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns measure -> its sums [B], in the order of the task."""
    return {name.removeprefix(_SUM): rows[name] for name in rows if name.startswith(_SUM)}
