"""A model's quality, residual and steps at each tolerance."""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeq.runs.measures import Measure
from tfdeq.serving.signatures.served_names import CERTIFIED_RADIUS
from tfdeq.serving.signatures.signature import Signature

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_BATCH = 16


class Table(abc.ABC):
    """The measurement of a served model's quality, with its examples and its signature.

    Args:
        count: number of examples.
        solves: whether the model makes solves; if not, there is one tolerance, 0, the model's own.

    Attributes:
        signature: name of the signature used.
        tolerances: relative residuals, as in a request without max_steps.
    """

    signature = "serving_default"

    def __init__(self, count: int, solves: bool):
        self.count = count
        self.tolerances: Sequence[float] = TOLERANCES if solves else (0.0,)

    @abc.abstractmethod
    def inputs(self, rows: slice) -> dict[str, np.ndarray]:
        """Returns the signature's inputs for some examples, without tolerance and max_steps."""

    @abc.abstractmethod
    def figures(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the figures of quality from the answers to all examples."""

    def requests(self, tolerance: float) -> list[dict[str, np.ndarray]]:
        """Returns the signature's inputs for all examples, in batches."""
        found = []
        for start in range(0, self.count, _BATCH):
            rows = slice(start, min(start + _BATCH, self.count))
            batch = rows.stop - rows.start
            settings = {
                "tolerance": np.full([batch], tolerance, np.float32),
                "max_steps": np.zeros([batch], np.int32),
            }
            found.append({**self.inputs(rows), **settings})
        return found

    def row(self, tolerance: float, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """Returns the table's row for a tolerance, from the answers to its requests.

        tolerance; the figures of quality; residual (mean and largest), steps (mean), converged (share of
        the examples).
        """
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {
            "tolerance": tolerance,
            **self.figures(found),
            "residual": float(found["residual"].mean()),
            "largest_residual": float(found["residual"].max()),
            "steps": float(found["steps"].mean()),
            "converged": float((found["status"] == 0).mean()),
        }

    def measured(self, signature: Signature) -> list[dict[str, Any]]:
        """Returns one row per tolerance, computed with the served function."""
        table = []
        for tolerance in self.tolerances:
            parts = []
            for inputs in self.requests(tolerance):
                given = {name: tf.constant(value) for name, value in inputs.items()}
                outputs = signature.function(**given)
                parts.append({name: value.numpy() for name, value in outputs.items()})
            table.append(self.row(tolerance, parts))
        return table


class TextTable(Table):
    """Bits per token of windows of the test text.

    Args:
        windows: [N, T] int32 token ids.
        solves: as above.
    """

    signature = "score"

    def __init__(self, windows: np.ndarray, solves: bool = True):
        super().__init__(len(windows), solves)
        self._windows = windows

    def inputs(self, rows: slice) -> dict[str, np.ndarray]:
        tokens = self._windows[rows]
        return {"tokens": tokens, "lengths": np.full([len(tokens)], tokens.shape[1], np.int32)}

    def figures(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        nats = -outputs["log_likelihood"][:, 1:].mean(dtype=np.float64)
        return {"bits_per_token": float(nats / math.log(2))}


class ExampleTable(Table):
    """Measures of a model's outputs on examples with targets.

    Args:
        examples: input name -> [N, …].
        targets: [N, …], or a dict of these.
        measures: name -> measure of (targets, outputs). Outputs are a tensor, or a dict by name if
            there are several.
        solves: as above.
    """

    def __init__(
        self,
        examples: Mapping[str, np.ndarray],
        targets: Any,
        measures: Mapping[str, Measure],
        solves: bool = True,
    ):
        super().__init__(len(next(iter(examples.values()))), solves)
        self._examples, self._targets, self._measures = examples, targets, measures

    def inputs(self, rows: slice) -> dict[str, np.ndarray]:
        return {name: value[rows] for name, value in self._examples.items()}

    def figures(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        own = {n: v for n, v in outputs.items() if n not in ("residual", "steps", "status")}
        alone = set(own) <= {"output_0", CERTIFIED_RADIUS}
        given = own["output_0"] if alone else own
        return {
            name: float(np.mean(keras.ops.convert_to_numpy(measure(self._targets, given))))
            for name, measure in self._measures.items()
        }
