"""Numbers that may change while a compiled function uses them."""

import functools

import tensorflow as tf

from tfdeq.cell_calls.call_time import call_time_value, can_ask, current_graph


class LiveNumber:
    """A number that functions read when they are called, not when they are traced.

    It is no variable: models do not save it, and it may be changed from Python at any time. A function
    that is saved keeps the value of then.

    Attributes:
        value: the number.
    """

    def __init__(self, value: float):
        self.value = float(value)

    def read(self) -> tf.Tensor:
        """Returns the value, [] float32: in a compiled function that of each of its calls."""
        if not can_ask(current_graph()):
            return _constant(self.value)
        spec = tf.TensorSpec([], tf.float32)
        # The caller of a function may be a function that is traced, and then asks in its turn.
        return call_time_value(
            ("tfdeq.LiveNumber", id(self)), self.read, spec, lambda: _constant(self.value)
        )


@functools.lru_cache(maxsize=256)
def _constant(value: float) -> tf.Tensor:
    # The same one each time: a function that is saved keeps it as a constant.
    with tf.init_scope(), tf.device("CPU:0"):
        return tf.constant(value, tf.float32)
