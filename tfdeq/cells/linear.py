"""Parts of cells: linear maps with a scale for their initial weights, and a norm without gains."""

from typing import Any

import keras
from keras import ops

from tfdeq.cells.normalized_dense import normalized_dense

_EPSILON = 1e-5  # also keeps the norm of a zero state at zero


def linear(
    units: int, scale: float = 1.0, *, normalization: str | None = None, **settings: Any
) -> keras.layers.Layer:
    """Returns a linear map whose initial weights are N(0, 1 / fan_in) times a scale.

    Args:
        units: outputs.
        scale: >= 0; 0: the weights start at zero. Default 1.
        normalization: see `normalized_dense`. Default None.
        settings: name, dtype, use_bias, as for `keras.layers.Dense`; no bias by default.
    """
    initializer = "zeros"
    if scale:
        initializer = keras.initializers.VarianceScaling(scale**2, "fan_in", "untruncated_normal")
    settings = {"use_bias": False, "kernel_initializer": initializer, **settings}
    return normalized_dense(units, normalization, **settings)


def norm(x: Any) -> Any:
    """Returns x [..., d] divided by its root mean square over d."""
    return ops.rms_normalization(x, epsilon=_EPSILON)


def checked_scale(name: str, value: float) -> float:
    """Returns the initial scale of a matrix.

    Raises:
        ValueError: if it is below 0 or NaN.
    """
    if not float(value) >= 0:
        raise ValueError(f"{name} must be >= 0; received {value!r}.")
    return float(value)
