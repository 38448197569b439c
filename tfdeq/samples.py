"""Settings and choices for each sample of a batch."""

from typing import Any

import numpy as np
import tensorflow as tf


def per_sample(name: str, value: Any, default: Any, batch: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns value, or the default, as [B]; checks what is known before the loop runs.

    Args:
        name: of the setting, for errors.
        value: scalar or [B], may be a tensor; None: the default.
        default: scalar.
        batch: [1] int32, B.
        dtype: an integer must be at least 1, a floating number greater than 0.
    """
    value = default if value is None else value
    if not tf.is_tensor(value):
        array = np.asarray(value)
        if dtype.is_integer and not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} must be of integers; received {value!r}.")
        value = tf.constant(array, dtype)
    tensor = tf.cast(value, dtype)
    known = tf.get_static_value(tensor)
    if known is not None and known.size:
        bound = "at least 1" if dtype.is_integer else "greater than 0"
        valid = (known >= 1).all() if dtype.is_integer else (known > 0).all()
        if not valid:
            raise ValueError(f"{name} must be {bound} for every sample; received {known}.")
    size = tf.get_static_value(batch)
    fits = tensor.shape.rank in (0, None) or (
        tensor.shape.rank == 1 and (size is None or tensor.shape[0] in (1, None, size[0]))
    )
    if not fits:
        expected = "[B]" if size is None else f"[{size[0]}]"
        raise ValueError(
            f"{name} must be a scalar or of shape {expected}, one for each sample; received shape "
            f"{tensor.shape}."
        )
    return tf.stop_gradient(tf.broadcast_to(tensor, batch))


def random_rows(values: Any, rows: tf.Tensor, seed: Any) -> Any:
    """Returns some of the batch's rows, the same ones of every leaf, drawn without repetition.

    Args:
        values: nest of [B, ...], or [1, ...] and scalars for what all samples share; the first leaf
            has the batch's B rows.
        rows: how many, at most B: an integer, or a scalar tensor.
        seed: [2] integers.
    """
    first = tf.nest.flatten(values)[0]
    seed = tf.cast(tf.convert_to_tensor(seed), tf.int64)
    order = tf.argsort(tf.random.stateless_uniform(tf.shape(first)[:1], seed))[:rows]

    def gather(leaf):
        if leaf.shape.rank == 0 or leaf.shape[0] == 1:
            return leaf
        # A leaf of one row, known only when it runs, belongs to all samples.
        return tf.gather(leaf, tf.minimum(order, tf.shape(leaf)[0] - 1))

    return tf.nest.map_structure(gather, values)


def aligned(values: tf.Tensor, leaf: tf.Tensor) -> tf.Tensor:
    """Returns values [B] as [B, 1, …], of the rank of leaf [B, …]."""
    ones = tf.ones([tf.rank(leaf) - 1], tf.int32)
    return tf.reshape(values, tf.concat([tf.shape(values), ones], axis=0))


def choose(condition: tf.Tensor, one: Any, other: Any) -> Any:
    """Returns sample b of the nest `one` where condition[b], else of `other`.

    Leaves are [B, ...]; a scalar, which all samples share, is that of `one`.
    """

    def choose_leaf(one, other):
        if one.shape.rank == 0:
            return one
        chosen = tf.where(aligned(condition, one), one, other)
        chosen.set_shape(other.shape)
        return chosen

    return tf.nest.map_structure(choose_leaf, one, other)
