"""What the dial buys: a language model's bits per token, residual and steps at each tolerance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeq.serving.signatures.signature import Signature

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_BATCH = 16


def quality_by_tolerance(
    score: Signature, windows: np.ndarray, tolerances: Sequence[float] = TOLERANCES
) -> list[dict[str, Any]]:
    """Scores windows of the test text at each tolerance with the very function that is served.

    Args:
        score: the signature `score`.
        windows: [N, T] int32 token ids.
        tolerances: relative residuals, named as a request names them: without max_steps.

    Returns:
        A row a tolerance: tolerance, bits_per_token (mean), residual (mean and largest), steps
        (mean), converged (share of the windows).
    """
    table = []
    for tolerance in tolerances:
        parts = []
        for inputs in requests(windows, tolerance):
            given = {name: tf.constant(value) for name, value in inputs.items()}
            outputs = score.function(**given)
            parts.append({name: value.numpy() for name, value in outputs.items()})
        table.append(row(tolerance, parts))
    return table


def requests(windows: np.ndarray, tolerance: float) -> list[dict[str, np.ndarray]]:
    """Returns the inputs of `score` for windows, in batches, as a request with a tolerance names it."""
    found = []
    for start in range(0, len(windows), _BATCH):
        tokens = windows[start : start + _BATCH]
        batch, length = tokens.shape
        found.append(
            {
                "tokens": tokens,
                "lengths": np.full([batch], length, np.int32),
                "tolerance": np.full([batch], tolerance, np.float32),
                "max_steps": np.zeros([batch], np.int32),
            }
        )
    return found


def row(tolerance: float, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Returns the table's row of a tolerance, from what `score` answered to its requests."""
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    nats = -found["log_likelihood"][:, 1:].mean(dtype=np.float64)
    return {
        "tolerance": tolerance,
        "bits_per_token": float(nats / math.log(2)),
        "residual": float(found["residual"].mean()),
        "largest_residual": float(found["residual"].max()),
        "steps": float(found["steps"].mean()),
        "converged": float((found["status"] == 0).mean()),
    }
