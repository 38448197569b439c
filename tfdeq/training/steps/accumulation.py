"""A batch that is computed in parts, one after the other (--accumulation_steps)."""

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
    """Returns the means of what is computed of each part, and the carried state of all rows.

    Every part counts alike: the mean is that of the batch where what is computed is a mean over
    rows, each with as many predictions.

    Args:
        compute: (index [] int32, rows of the batch, their carried state) -> (tensors, the new one).
        count: parts, which divide the rows; with 1 nothing is taken apart.
        batch, carried: nests of tensors [B, …].
        shapes: of the tensors that compute returns.
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
