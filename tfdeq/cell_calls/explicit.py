"""Explicit applications of a cell: the weight-tied network that an equilibrium replaces."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdeq.numerics.function_evaluation import relative_residual
from tfdeq.numerics.state_layout import StateLayout
from tfdeq.solution import Solution, Status


def apply_explicitly(
    f: Callable[..., Any], z: Any, args: Any, steps: int, unroll: bool
) -> Solution:
    """Returns z after a number of plain applications of f, differentiated by backpropagation.

    unroll: whether to unroll the applications, which trains faster; a loop compiles faster.
    """
    if unroll:
        for _ in range(steps):
            z = f(z, *args)
    else:
        _, z = tf.while_loop(
            lambda k, _: k < steps,
            lambda k, z: (k + 1, f(z, *args)),
            (tf.constant(0), z),
            maximum_iterations=steps,
        )
    layout = StateLayout(z)
    residual = relative_residual(layout.flatten(z), layout.flatten(f(z, *args)))
    residual = tf.stop_gradient(tf.cast(residual, tf.float32))
    counts = tf.fill(tf.shape(residual), steps)
    return Solution(z, residual, counts, tf.fill(tf.shape(residual), int(Status.MAX_STEPS)))
