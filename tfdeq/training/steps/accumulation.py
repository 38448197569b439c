"""Batches that are computed in parts, one after another (--accumulation_steps)."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def mean_over_parts(
    compute: Callable[[Any, Any, Any], tuple[list[tf.Tensor], Any]],
    count: int,
    batch: Any,
    carried: Any,
    shapes: Sequence[tf.TensorSpec],
) -> tuple[list[tf.Tensor], Any]:
    """Returns the means of the values computed for each part, and the carried state of all rows.

    All parts have the same weight. The mean equals that of the batch if the values are means over rows
    with equal numbers of predictions.

    Args:
        compute: (index, a scalar int32; rows of the batch; their carried state) -> (tensors, new
            carried state).
        count: number of parts, which must divide the rows; 1: the batch is not divided.
        batch, carried: nests of tensors [B, …].
        shapes: shapes of the tensors that compute returns.
    """
    if count == 1:
        return compute(0, batch, carried)
    batch, carried = tf.nest.map_structure(
        lambda leaf: tf.reshape(leaf, [count, leaf.shape[0] // count, *leaf.shape[1:]]),
        (batch, carried),
    )

    def body(index, sums, carried):
        rows = tf.nest.map_structure(lambda leaf: leaf[index], (batch, carried))
        found, new = compute(index, *rows)
        sums = [sum_ + own / count for sum_, own in zip(sums, found, strict=True)]
        carried = tf.nest.map_structure(
            lambda all_, own: tf.tensor_scatter_nd_update(all_, [[index]], own[None]), carried, new
        )
        return index + 1, sums, carried

    _, sums, carried = tf.while_loop(
        lambda index, *_: index < count,
        body,
        [tf.constant(0), [tf.zeros(spec.shape, spec.dtype) for spec in shapes], carried],
        parallel_iterations=1,
    )
    return sums, tf.nest.map_structure(
        lambda leaf: tf.reshape(leaf, [-1, *leaf.shape[2:]]), carried
    )
