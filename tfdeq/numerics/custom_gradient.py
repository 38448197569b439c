"""What keeps a custom gradient from being lost without a word."""

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
    """Returns the outputs of a tf.custom_gradient's function, with no gradient but the custom one.

    tf.vectorized_map maps operations, not custom gradients: a gradient that is taken of what it
    returns goes through the function itself. Here that is an error (LookupError); without this it
    would be zero, since solves are under tf.stop_gradient.

    Args:
        outputs: what the function returns. inputs: what it was given.
    """
    if tf.executing_eagerly():
        return list(outputs)  # nothing drops it there
    # Beside the inputs, so that a tape that watches those comes by.
    beside = tf.identity_n([*outputs, *inputs])[: len(outputs)]
    return [tf.raw_ops.PreventGradient(input=leaf, message=_DROPPED) for leaf in beside]


def _vectorized(operation):
    message = operation.get_attr("message")
    stacked = operation.stacked_input(0)
    return pfor.wrap(tf.raw_ops.PreventGradient(input=stacked, message=message), True)


# TensorFlow has none, and would loop over the elements with a warning.
if "PreventGradient" not in pfor._pfor_converter_registry:
    pfor.RegisterPFor("PreventGradient")(_vectorized)
