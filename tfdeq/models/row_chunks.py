"""Work on some rows of a batch where shapes are fixed, as under XLA: a chunk of them after the other."""

from collections.abc import Callable, Sequence

import tensorflow as tf

CHUNK = 64


def chunked(
    function: Callable[..., tf.Tensor],
    member: tf.Tensor,
    rows: tf.Tensor,
    labels: tf.Tensor,
    weights: Sequence[tf.Tensor],
    chunk: int = CHUNK,
) -> tf.Tensor:
    """Returns y [N]: y_n = function(rows, labels, *weights)_n where n is a member, else 0.

    ⌈members / chunk⌉ calls of function, in a loop whose length depends on values where no shape does.
    A call's intermediates are not kept: the gradient calls function again, so neither pass holds more
    than one chunk of them. Differentiable once, towards rows and weights.

    Args:
        function: rows [chunk, d], labels [chunk], *weights -> [chunk], each from its own row.
        member: [N] bool.
        rows: [N, d] floating.
        labels: [N] integers; those of members need make sense, and function takes 0 from any row.
        weights: floating tensors of any shapes.
        chunk: how many rows at a time. Default 64.

    Example:
        >>> member = tf.constant([True, False, True])
        >>> rows = tf.constant([[1.0], [2.0], [3.0]])
        >>> def power(x, n, w):
        ...     return w * x[:, 0] ** tf.cast(n, x.dtype)
        >>> chunked(power, member, rows, tf.constant([2, 0, 1]), [tf.constant(10.0)]).numpy().tolist()
        [10.0, 0.0, 30.0]
    """
    if rows.shape[0] == 0:
        return function(rows, labels, *weights)  # nothing that a loop's body could take rows from
    # A chunk's other rows must give numbers: their gradients are multiplied by zero, which NaN survives.
    labels = tf.where(member, labels, tf.zeros_like(labels))
    count = tf.reduce_sum(tf.cast(member, tf.int32))
    # Members first; row 0 behind the last, so that every chunk is full.
    order = tf.pad(tf.argsort(tf.cast(~member, tf.int32)), [[0, chunk]])

    def taken(k):
        """The k-th chunk's rows, and which of them are members."""
        return tf.slice(order, [k * chunk], [chunk]), k * chunk + tf.range(chunk) < count

    def loop(body, start):
        end = (count + chunk - 1) // chunk
        return tf.while_loop(
            lambda k, *_: k < end,
            lambda k, *sums: (k + 1, *body(k, *sums)),
            (tf.constant(0), *start),
            parallel_iterations=1,
        )[1:]

    @tf.custom_gradient
    def run(rows, *weights):
        def forward(k, y):
            index, valid = taken(k)
            part = function(tf.gather(rows, index), tf.gather(labels, index), *weights)
            return [_add(y, index, tf.where(valid, part, 0.0))]

        def gradient(d_y):
            def backward(k, d_rows, *d_weights):
                index, valid = taken(k)
                inputs = [tf.gather(rows, index), *weights]
                with tf.GradientTape() as tape:
                    tape.watch(inputs)
                    part = function(inputs[0], tf.gather(labels, index), *inputs[1:])
                upstream = tf.where(valid, tf.gather(d_y, index), 0.0)
                d_row, *more = tape.gradient(part, inputs, upstream, unconnected_gradients="zero")
                sums = [total + term for total, term in zip(d_weights, more, strict=True)]
                return [_add(d_rows, index, d_row), *sums]

            return loop(backward, [tf.zeros_like(value) for value in (rows, *weights)])

        return loop(forward, [tf.zeros_like(rows[:, 0])])[0], gradient

    return run(rows, *weights)


def _add(values, index, terms):
    return tf.ensure_shape(tf.tensor_scatter_nd_add(values, index[:, None], terms), values.shape)
