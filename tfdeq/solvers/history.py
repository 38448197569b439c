"""Histories of vectors, [B, m, D]: products with them and new rows, fast in every mode."""

import tensorflow as tf

from tfdeq.numerics.fixed_shapes import shapes_are_fixed
from tfdeq.rows import scattered


def empty(z: tf.Tensor, rows: int) -> tf.Tensor:
    """Returns zeros [B, rows, D] for an iterate z [B, D]."""
    batch, size = tf.unstack(tf.shape(z))
    history = tf.zeros([batch, rows, size], z.dtype)
    history.set_shape([z.shape[0], rows, z.shape[1]])
    return history


def growing(z: tf.Tensor, rows: int) -> tf.Tensor:
    """Returns an empty history that `appended` extends up to `rows`; under XLA it has all rows at once.

    So the cost of products with it depends on the rows that it holds, not on those that it could hold.
    """
    if shapes_are_fixed():
        return empty(z, rows)
    # The placeholder's shape is unknown when the graph is traced, so a loop allows it to change.
    return tf.compat.v1.placeholder_with_default(
        empty(z, 0), tf.TensorShape([z.shape[0], None, z.shape[1]])
    )


def inner_products(history: tf.Tensor, v: tf.Tensor, rows: int | None = None) -> tf.Tensor:
    """Returns the products of the rows with v [B, D], [B, m], padded with zeros to [B, rows]."""
    products = tf.linalg.matvec(history, v)
    if rows is None or history.shape[1] == rows:
        return products
    products = tf.pad(products, [[0, 0], [0, rows - tf.shape(history)[1]]])
    products.set_shape([history.shape[0], rows])
    return products


def combination(history: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Returns the weighted sum of the rows, [B, D]; weights without a row must be 0."""
    if history.shape[1] != weights.shape[1]:
        weights = weights[:, : tf.shape(history)[1]]
    # Multiplies from the left, because outside of XLA a transposed history would be copied.
    return tf.squeeze(tf.matmul(weights[:, None, :], history), 1)


def appended(history: tf.Tensor, position: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
    """Like `with_row`, for a growing history, where position may be one past the last row."""
    if shapes_are_fixed():
        return with_row(history, position, row)
    result = tf.cond(
        tf.equal(position, tf.shape(history)[1]),
        lambda: tf.concat([history, row[:, None]], axis=1),
        lambda: with_row(history, position, row),
    )
    result.set_shape([history.shape[0], None, history.shape[2]])
    return result


def padded(history: tf.Tensor, longer: tf.Tensor) -> tf.Tensor:
    """Returns a growing history padded with zeros to the number of rows of a later one."""
    missing = tf.shape(longer)[1] - tf.shape(history)[1]
    result = tf.pad(history, [[0, 0], [0, missing], [0, 0]])
    result.set_shape(longer.shape)
    return result


def with_row(history: tf.Tensor, position: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
    """Returns the history with row [B, D] at position, a scalar in 0 … m − 1 for all samples."""
    if shapes_are_fixed():
        # One fused pass; under XLA a scatter becomes a loop over the samples.
        here = tf.range(history.shape[1]) == position
        return tf.where(here[None, :, None], row[:, None, :], history)
    # This makes one copy of the history; a select would also make a mask of its size.
    samples = tf.range(tf.shape(history)[0])
    indices = tf.stack([samples, tf.broadcast_to(position, tf.shape(samples))], axis=1)
    return scattered(history, indices, row)
