"""Common parts of a run's pictures and the report's plots: colours and curves with gaps."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

# Okabe and Ito's colours, which everyone can distinguish; lines also differ in style.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
PURPLE, GOLD, SKY = "#CC79A7", "#E69F00", "#56B4E9"
LOWEST = 1e-8  # value at which a logarithmic axis shows a residual of zero


def number(value: Any) -> float | None:
    """Returns value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        return None
    return value


def defined(curves: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, values) of a curve at its finite values; empty if there is no curve."""
    pairs = [
        (step, value)
        for step, value in zip(curves.get("step") or (), curves.get(name) or (), strict=False)
        if number(step) is not None and number(value) is not None
    ]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps), np.array(values, dtype=float)


def tidy(axes: Any) -> None:
    """Draws a faint grid, and removes the frame on sides without an axis."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
