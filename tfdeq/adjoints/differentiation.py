"""Functions with a custom gradient, for reverse mode and forward mode."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import forwardprop_util, record

from tfdeq.numerics.custom_gradient import custom_gradient_only

# inputs -> (outputs, (outputs, *their cotangents) -> cotangents of the inputs, or None). The
# gradient receives the outputs attached to the inputs, so that it can be differentiated too.
Differentiable = Callable[..., tuple[list[tf.Tensor], Callable[..., list[Any]]]]


def differentiated(function: Differentiable, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the function's outputs with its own gradient, as `tf.custom_gradient` does.

    It also works with tf.autodiff.ForwardAccumulator: tangents are computed by the transpose of the
    gradient, which is linear in the cotangents. (With tf.custom_gradient itself, a gradient that uses a
    tape gets a wrong tangent, or none.)

    Args:
        function: inputs -> (outputs, gradient). The outputs must not carry another gradient; the
            gradient must be differentiable in the cotangents.
        inputs: tensors.

    Raises:
        ValueError: inside two accumulators that both watch the inputs.
    """
    # Makes tensors of the current graph. If a backward pass inside a loop is differentiated, only
    # these are known.
    inputs = [tf.identity(leaf) for leaf in inputs]
    known = _tangents(inputs)
    attached: list[tf.Tensor] = []

    @tf.custom_gradient
    def custom(*inputs):
        outputs, gradient = function(*inputs)
        if known is None:
            outputs = custom_gradient_only(outputs, inputs)
        # An accumulator calls this at once, for a tangent that is not used.
        return outputs, lambda *cotangents: gradient(attached or outputs, *cotangents)

    if tf.executing_eagerly():
        outputs, gradient = function(*inputs)
        attached.extend(outputs)
        record.record_operation_backprop_only(
            "FixedPoint", outputs, inputs, lambda *cotangents: gradient(attached, *cotangents)
        )
    else:
        attached.extend(tf.nest.flatten(custom(*inputs)))
    if known is not None:
        tangents = _transposed(function, inputs, attached, known)
        count = len(attached)
        record.record_operation_forwardprop_only(
            "FixedPoint",
            [*attached, *tangents],
            inputs,
            None,
            (tuple((number, count + number) for number in range(count)),),
        )
    return attached


def _tangents(inputs: list[tf.Tensor]) -> list[Any] | None:
    """Returns the tangents of the inputs, None for inputs without; None if no accumulator is active."""
    packed = forwardprop_util.pack_tangents(inputs)
    looking_on = [pairs for pairs in packed.indices if pairs]
    if not looking_on:
        return None
    if len(looking_on) > 1:
        raise ValueError(
            "Two nested tf.autodiff.ForwardAccumulators cannot differentiate a fixed point twice. "
            "Replace one of them by a tf.GradientTape, inside or around the other."
        )
    tangents: list[Any] = [None] * len(inputs)
    for primal, place in looking_on[0]:
        tangents[primal] = packed.tangents[place - len(inputs)]
    return tangents


def _transposed(
    function: Differentiable,
    inputs: list[tf.Tensor],
    attached: list[tf.Tensor],
    tangents: Sequence[Any],
) -> list[tf.Tensor]:
    """Returns the outputs' tangents for those of the inputs, by differentiating the gradient once more."""
    # Otherwise the accumulator that asks for the tangents switches tapes off.
    with forwardprop_util.push_forwardprop_state():
        # The gradient's own solves need no tangents, because they are linear in the cotangents.
        _, gradient = function(*map(_without_tangent, inputs))
        outputs = [_without_tangent(output) for output in attached]
        cotangents = [tf.zeros_like(output) for output in outputs]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(cotangents)
            products = gradient(outputs, *cotangents)
        pairs = [
            (product, tangent)
            for product, tangent in zip(products, tangents, strict=True)
            if product is not None and tangent is not None
        ]
        return tape.gradient(
            [product for product, _ in pairs],
            cotangents,
            output_gradients=[tangent for _, tangent in pairs],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )


def _without_tangent(tensor: tf.Tensor) -> tf.Tensor:
    """Returns a tensor that is the same for tapes, and a constant for accumulators."""
    with record.stop_recording():
        copy = tf.identity(tensor)
    record.record_operation_backprop_only("Identity", [copy], [tensor], lambda d: [d])
    return copy
