"""Vectors that a solver keeps, [B, m, D]: products with them and a new row, fast in every mode."""

import tensorflow as tf

from tfdeq.numerics.xla import compiles_with_xla
from tfdeq.rows import scattered


def empty(z: tf.Tensor, rows: int) -> tf.Tensor:
    """Returns zeros [B, rows, D] for an iterate z [B, D]."""
    batch, size = tf.unstack(tf.shape(z))
    history = tf.zeros([batch, rows, size], z.dtype)
    history.set_shape([z.shape[0], rows, z.shape[1]])
    return history


def growing(z: tf.Tensor, rows: int) -> tf.Tensor:
    """Returns an empty history that `appended` fills up to rows; under XLA it is all there from the start.

    Products with it then cost what it holds, not what it could hold.
    """
    if compiles_with_xla():
        return empty(z, rows)
    # The placeholder's shape is unknown to the tracer, so that a loop lets it change.
    return tf.compat.v1.placeholder_with_default(
        empty(z, 0), tf.TensorShape([z.shape[0], None, z.shape[1]])
    )


def inner_products(history: tf.Tensor, v: tf.Tensor, rows: int | None = None) -> tf.Tensor:
    """Returns [B, m], the product of each row with v [B, D]; with zeros up to [B, rows]."""
    products = tf.linalg.matvec(history, v)
    if rows is None or history.shape[1] == rows:
        return products
    products = tf.pad(products, [[0, 0], [0, rows - tf.shape(history)[1]]])
    products.set_shape([history.shape[0], rows])
    return products


def combination(history: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Returns [B, D], the sum of the rows with weights [B, m], or more: those that have no row are 0."""
    if history.shape[1] != weights.shape[1]:
        weights = weights[:, : tf.shape(history)[1]]
    # As a row from the left: a transposed history would be copied outside of XLA.
    return tf.squeeze(tf.matmul(weights[:, None, :], history), 1)


def appended(history: tf.Tensor, position: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
    """As `with_row` for a growing history, whose next row may be the one behind its last."""
    if compiles_with_xla():
        return with_row(history, position, row)
    result = tf.cond(
        tf.equal(position, tf.shape(history)[1]),
        lambda: tf.concat([history, row[:, None]], axis=1),
        lambda: with_row(history, position, row),
    )
    result.set_shape([history.shape[0], None, history.shape[2]])
    return result


def padded(history: tf.Tensor, longer: tf.Tensor) -> tf.Tensor:
    """Returns a growing history with zeros behind it, as many rows as a later one of it has."""
    missing = tf.shape(longer)[1] - tf.shape(history)[1]
    result = tf.pad(history, [[0, 0], [0, missing], [0, 0]])
    result.set_shape(longer.shape)
    return result


def with_row(history: tf.Tensor, position: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
    """Returns the history with row [B, D] at position, a scalar in 0 … m − 1, the same for all."""
    if compiles_with_xla():
        # One fused pass; a scatter becomes a loop over the samples there.
        here = tf.range(history.shape[1]) == position
        return tf.where(here[None, :, None], row[:, None, :], history)
    # One copy of the history; a select would make a mask of its size as well.
    samples = tf.range(tf.shape(history)[0])
    indices = tf.stack([samples, tf.broadcast_to(position, tf.shape(samples))], axis=1)
    return scattered(history, indices, row)
