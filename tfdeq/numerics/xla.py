"""Whether XLA compiles the current trace: shapes are then fixed, and other operations are fast."""

import tensorflow as tf
from tensorflow.python.ops import control_flow_util


def compiles_with_xla() -> bool:
    """Whether XLA will compile the operations being made; False in eager mode and plain graphs."""
    if tf.executing_eagerly():
        return False
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
