"""One evaluation of f on the state's matrix: checked, without gradient, with products if wanted."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdeq.state_layout import StateLayout

# Keeps 0 / 0 at 0 where a state and its image vanish; far below any residual that matters.
_TINY = 1e-20


def relative_residual(z: tf.Tensor, f_z: tf.Tensor) -> tf.Tensor:
    """‖f(z) − z‖₂ / (‖f(z)‖₂ + ε) per sample; [B, D], [B, D] -> [B]."""
    return tf.norm(f_z - z, axis=1) / (tf.norm(f_z, axis=1) + tf.cast(_TINY, z.dtype))


def evaluate(f: Callable[[Any], Any], layout: StateLayout, z: tf.Tensor) -> tf.Tensor:
    """f at z, [B, D] -> [B, D], without a gradient."""
    # The tape records nothing that is used; it tells which variables f read.
    with tf.GradientTape() as tape:
        output = f(layout.unflatten(z))
    check_variables(tape.watched_variables())
    layout.check_output(output)
    result = tf.stop_gradient(layout.flatten(output))
    result.set_shape(z.shape)
    return result


def evaluate_linearised(
    f: Callable[[Any], Any], layout: StateLayout, z: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """f at z and v -> ∂f/∂z v there, both [B, D].

    u -> Jᵀu is linear, so its own gradient is v -> Jv: two reverse passes make a forward one, and f is
    evaluated once for all products.
    """
    u = tf.zeros_like(z)
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(u)
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(z)
            output = f(layout.unflatten(z))
            layout.check_output(output)
            result = layout.flatten(output)
        transposed = inner.gradient(
            result, z, output_gradients=u, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
    check_variables(outer.watched_variables())

    def product(v: tf.Tensor) -> tf.Tensor:
        return outer.gradient(
            transposed, u, output_gradients=v, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    result = tf.stop_gradient(result)
    result.set_shape(z.shape)
    return result, product


def check_variables(variables: tuple[tf.Variable, ...]) -> None:
    if variables:
        names = ", ".join(sorted(variable.name for variable in variables))
        raise ValueError(
            f"f reads trainable variables that are not in args ({names}): no gradient would reach "
            "them. Pass them, f(z, *args), through args; or, where no gradient is wanted, pass "
            "tf.stop_gradient of them."
        )
