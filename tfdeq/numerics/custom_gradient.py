"""Makes the loss of a custom gradient an error."""

from collections.abc import Sequence

import tensorflow as tf
from tensorflow.python.ops.parallel_for import pfor

_DROPPED = (
    "tf.vectorized_map, which keras.layers.TimeDistributed uses where the length is unknown, drops the "
    "custom gradient of a fixed point that is solved inside of it: no gradient can be taken from outside. "
    "Use tf.map_fn, or put what is mapped over into the batch; or take the gradient inside the mapped "
    "function; or use the adjoint tfdeq.Unrolled(steps, checkpointed=False)."
)


def custom_gradient_only(
    outputs: Sequence[tf.Tensor], inputs: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """Returns the outputs of a tf.custom_gradient's function, with the custom gradient as the only one.

    tf.vectorized_map maps operations, not custom gradients, so a gradient of its result goes through
    the operations of the function. With this function that raises a LookupError; otherwise the gradient
    would be zero, because solves are under tf.stop_gradient.

    Args:
        outputs: outputs of the function. inputs: its inputs.
    """
    if tf.executing_eagerly():
        return list(outputs)  # there the custom gradient is never lost
    # Together with the inputs, so that a tape that watches these records the operation.
    beside = tf.identity_n([*outputs, *inputs])[: len(outputs)]
    return [tf.raw_ops.PreventGradient(input=leaf, message=_DROPPED) for leaf in beside]


def _vectorized(operation):
    message = operation.get_attr("message")
    stacked = operation.stacked_input(0)
    return pfor.wrap(tf.raw_ops.PreventGradient(input=stacked, message=message), True)


# TensorFlow has no converter for it, and would loop over the elements with a warning.
if "PreventGradient" not in pfor._pfor_converter_registry:
    pfor.RegisterPFor("PreventGradient")(_vectorized)
