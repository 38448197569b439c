"""Work on some rows of a batch, in chunks, where shapes are fixed, as under XLA."""

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
    """Returns y [N] with y_n = function(rows, labels, *weights)_n if n is a member, else 0.

    It calls function ⌈members / chunk⌉ times, in a loop whose length, but no shape, depends on values.
    The intermediates of a call are not kept: the gradient calls function again, so neither pass holds
    more than one chunk of them. The result is differentiable once, with respect to rows and weights.

    Args:
        function: rows [chunk, d], labels [chunk], *weights -> [chunk], each from its own row.
        member: [N] bool.
        rows: [N, d] floating.
        labels: [N] integers; only those of members must be valid, and function must accept 0 for any
            row.
        weights: floating tensors of any shapes.
        chunk: number of rows at a time. Default 64.

    Example:
        >>> member = tf.constant([True, False, True])
        >>> rows = tf.constant([[1.0], [2.0], [3.0]])
        >>> def power(x, n, w):
        ...     return w * x[:, 0] ** tf.cast(n, x.dtype)
        >>> chunked(power, member, rows, tf.constant([2, 0, 1]), [tf.constant(10.0)]).numpy().tolist()
        [10.0, 0.0, 30.0]
    """
    if rows.shape[0] == 0:
        return function(rows, labels, *weights)  # no rows that a loop's body could gather
    # The other rows of a chunk must be finite: their gradients are multiplied by zero, but zero
    # times NaN is NaN.
    labels = tf.where(member, labels, tf.zeros_like(labels))
    count = tf.reduce_sum(tf.cast(member, tf.int32))
    # Members first, then padding with row 0, so that every chunk is full.
    order = tf.pad(tf.argsort(tf.cast(~member, tf.int32)), [[0, chunk]])

    def taken(k):
        """Returns the k-th chunk's rows, and which of them are members."""
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
