"""Numbers that may change while a compiled function uses them."""

import functools

import tensorflow as tf

from tfdeq.cell_calls.call_time import call_time_value, can_ask, current_graph


class LiveNumber:
    """A number that functions read when they are called, not when they are traced.

    It is not a variable: models do not save it, and Python code may change it at any time. A saved
    function keeps the value at the time of saving.

    Attributes:
        value: the number.
    """

    def __init__(self, value: float):
        self.value = float(value)

    def read(self) -> tf.Tensor:
        """Returns the value, a float32 scalar; in a compiled function, that at each of its calls."""
        if not can_ask(current_graph()):
            return _constant(self.value)
        spec = tf.TensorSpec([], tf.float32)
        # The caller may be a function that is being traced, which then also reads the value at its
        # calls.
        return call_time_value(
            ("tfdeq.LiveNumber", id(self)), self.read, spec, lambda: _constant(self.value)
        )


@functools.lru_cache(maxsize=256)
def _constant(value: float) -> tf.Tensor:
    # The same tensor each time, because a saved function keeps it as a constant.
    with tf.init_scope(), tf.device("CPU:0"):
        return tf.constant(value, tf.float32)
