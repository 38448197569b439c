"""Functions with a gradient of their own, for reverse mode and forward mode."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import forwardprop_util, record

from tfdeq.numerics.custom_gradient import custom_gradient_only

# inputs -> (outputs, (outputs, *their cotangents) -> cotangents of the inputs, or None). The gradient is
# handed the outputs as they are attached to the inputs, so that it can be differentiated itself.
Differentiable = Callable[..., tuple[list[tf.Tensor], Callable[..., list[Any]]]]


def differentiated(function: Differentiable, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the function's outputs with the gradient that it gives, as `tf.custom_gradient` does.

    tf.autodiff.ForwardAccumulator sees it too: its tangents are pushed through the transpose of the
    gradient, which is linear in the cotangents. (What tf.custom_gradient does of itself for it is no
    help: a gradient that uses a tape gets the wrong tangent there, or none.)

    Args:
        function: inputs -> (outputs, gradient). The outputs may carry no gradient otherwise; the
            gradient must be differentiable in the cotangents.
        inputs: tensors.

    Raises:
        ValueError: inside two accumulators, both of which see the inputs.
    """
    # Of the graph that is built now: a backward pass inside a loop, whose own gradient is taken, knows
    # no others.
    inputs = [tf.identity(leaf) for leaf in inputs]
    known = _tangents(inputs)
    attached: list[tf.Tensor] = []

    @tf.custom_gradient
    def custom(*inputs):
        outputs, gradient = function(*inputs)
        if known is None:
            outputs = custom_gradient_only(outputs, inputs)
        # An accumulator asks at once, for a tangent that is not used.
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
    """The tangents of the inputs, None where one has none; None if no accumulator looks on."""
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
    """Tangents of the outputs for those of the inputs: the gradient, differentiated once more."""
    # Else an accumulator that asks for this switches tapes off.
    with forwardprop_util.push_forwardprop_state():
        # The gradient's own solves have no tangents to push: these are linear in the cotangents.
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
    """The same tensor for tapes, and a constant for accumulators."""
    with record.stop_recording():
        copy = tf.identity(tensor)
    record.record_operation_backprop_only("Identity", [copy], [tensor], lambda d: [d])
    return copy
