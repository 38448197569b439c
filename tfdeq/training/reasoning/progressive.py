"""The progressive loss: the answer should be reachable from every state of an iteration."""

import tensorflow as tf

from tfdeq.cell_calls import batch_part
from tfdeq.models import Reasoner


def progressive_state(
    model: Reasoner, inputs: tf.Tensor, budget: tf.Tensor, most: int
) -> tf.Tensor:
    """Returns the state [B, places, width] after n + k applications, the last k with a gradient.

    n is drawn uniformly from 0 … budget − 1, then k from 1 … budget − n, both for the whole batch.

    Args:
        inputs: [B, places] integers.
        budget: scalar int32, >= 1. most: upper bound of the budget.

    Source: Bansal et al., End-to-end Algorithm Synthesis with Recurrent Networks, arXiv:2202.05826,
        algorithm 1.
    """
    x, mask = model.embed(inputs)
    given = {} if mask is None else {"mask": mask}
    z = model.start(x, training=True)
    x = model.cell.inject(x) if hasattr(model.cell, "inject") else x
    z = tf.cast(z, model.compute_dtype)
    first = _drawn(0, budget)
    count = _drawn(1, budget - first + 1)

    def applied(steps, z):
        _, z = tf.while_loop(
            lambda k, _: k < steps,
            lambda k, z: (k + 1, tf.cast(model.cell(z, x, **given), z.dtype)),
            (tf.constant(0), z),
            maximum_iterations=most,
        )
        return z

    return applied(count, tf.stop_gradient(applied(first, z)))


def _drawn(low: int, end: tf.Tensor) -> tf.Tensor:
    """Returns a scalar int32 from low … end − 1, the same in all parts of a batch."""
    part = batch_part.current()
    seed = _seed() if part is None else part.next_seed()
    return tf.random.stateless_uniform([], seed, low, end, dtype=tf.int32)


def _seed() -> tf.Tensor:
    return tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)
