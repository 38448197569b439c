"""One evaluation of f on the state's matrix: checked, without a gradient, optionally with products."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfdeq.numerics.closures import check_closures
from tfdeq.numerics.state_layout import StateLayout
from tfdeq.rows import power_of_two

# Makes 0 / 0 equal to 0 if a state and its image are zero; in units of the state, or far below
# them.
_TINY = {tf.float32: 1e-30, tf.float64: 1e-200}
# Smallest length of images whose squares, and those of differences near the tolerances, fit the
# dtype.
_LEAST = {tf.float32: 1e-10, tf.float64: 1e-100}
# Range of lengths for which this also holds for products of differences in the last digits.
_ORDINARY = {tf.float32: (2.0**-20, 2.0**40), tf.float64: (2.0**-300, 2.0**300)}


class Residual(NamedTuple):
    """The distances between states and their images; all [B]."""

    relative: tf.Tensor  # ‖f(z) − z‖₂ / (‖f(z)‖₂ + ε)
    distance: tf.Tensor  # ‖f(z) − z‖₂
    # A power of two of about the states' size, or 1 for states of ordinary size; only if requested.
    unit: tf.Tensor


def residual_of(z: tf.Tensor, f_z: tf.Tensor, with_unit: Any = False) -> Residual:
    """Returns the residual of each sample, for states of any size that the dtype can represent.

    Args:
        z, f_z: [B, D], states and their images.
        with_unit: whether `unit` will be used; a bool, or a scalar bool tensor.
    """
    low, high = (tf.constant(bound, z.dtype) for bound in _ORDINARY[z.dtype])
    least = tf.where(with_unit, low, tf.constant(_LEAST[z.dtype], z.dtype))
    tiny = tf.constant(_TINY[z.dtype], z.dtype)

    def norms(z, f_z):
        squares = (tf.reduce_sum(tf.square(part), axis=1) for part in (f_z - z, f_z))
        return [tf.sqrt(square) for square in squares]

    def of_any_size():
        # Computed again with states scaled to about unit size, whose squares neither overflow nor
        # underflow.
        unit = power_of_two(tf.reduce_max(tf.maximum(tf.abs(z), tf.abs(f_z)), axis=1))
        distance, length = norms(z / unit[:, None], f_z / unit[:, None])
        relative = distance / (length + tiny)
        distance, length = distance * unit, length * unit
        size = tf.maximum(distance, length)
        ordinary = (size >= low) & (size <= high)
        return [relative, distance, tf.where(ordinary, tf.ones_like(size), power_of_two(size))]

    distance, length = norms(z, f_z)
    relative = distance / (length + tiny)
    is_plain = (length >= least) & (tf.maximum(distance, length) <= high)  # False for NaN
    return Residual(
        *tf.cond(
            tf.reduce_all(is_plain),
            lambda: [relative, distance, tf.ones_like(distance)],
            of_any_size,
        )
    )


def relative_residual(z: tf.Tensor, f_z: tf.Tensor) -> tf.Tensor:
    """‖f(z) − z‖₂ / (‖f(z)‖₂ + ε) per sample; [B, D], [B, D] -> [B]."""
    return residual_of(z, f_z).relative


def evaluate(
    f: Callable[[Any], Any], layout: StateLayout, z: tf.Tensor, may_close_over: bool = False
) -> tf.Tensor:
    """Returns f at z, [B, D] -> [B, D], without a gradient.

    may_close_over: whether f may use other tensors that would need a gradient, which they do not get.
    """
    # Nothing that the tape records is used; it only finds which variables f reads.
    with tf.GradientTape() as tape, check_closures(may_close_over) as check:
        output = f(layout.unflatten(z))
    check_variables(tape.watched_variables())
    layout.check_output(output)
    check(output)
    result = tf.stop_gradient(layout.flatten(output))
    result.set_shape(z.shape)
    return result


def evaluate_linearised(
    f: Callable[[Any], Any], layout: StateLayout, z: tf.Tensor, may_close_over: bool = False
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Returns f at z, and v -> ∂f/∂z v at z, both [B, D].

    u -> Jᵀu is linear, so its own gradient is v -> Jv: two reverse passes make a forward pass, and f is
    evaluated once for all products. may_close_over: as for `evaluate`; not checked in eager mode.
    """
    u = tf.zeros_like(z)
    with tf.GradientTape(persistent=True) as outer, check_closures(may_close_over) as check:
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
    check(())

    def product(v: tf.Tensor) -> tf.Tensor:
        image = outer.gradient(
            transposed, u, output_gradients=v, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        image.set_shape(v.shape)
        return image

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
