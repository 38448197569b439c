"""Operations on the small matrices of solvers, [B, m, m], in every runtime."""

import tensorflow as tf

from tfdeq.numerics.fixed_shapes import is_for_litert


def diagonal(matrix: tf.Tensor) -> tf.Tensor:
    """Returns the diagonal of a matrix [B, m, m], [B, m]. LiteRT has no operation for it."""
    return tf.reduce_sum(tf.where(_is_diagonal(matrix), matrix, 0), axis=2)


def with_diagonal(matrix: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Returns the matrix [B, m, m] with the values [B, m] on its diagonal."""
    return tf.where(_is_diagonal(matrix), values[:, :, None], matrix)


def upper_solve(triangle: tf.Tensor, right_side: tf.Tensor) -> tf.Tensor:
    """Solves U x = b for upper triangular U with nonzero diagonal; [B, m, m], [B, m] -> [B, m]."""
    if not is_for_litert():
        return tf.linalg.triangular_solve(triangle, right_side[:, :, None], lower=False)[:, :, 0]
    size = triangle.shape[1]
    pivots = diagonal(triangle)

    def body(i, x):  # x holds the entries behind the i-th; the others are 0
        here = tf.one_hot(i, size, dtype=x.dtype)
        row = tf.gather(triangle, i, axis=1)
        value = tf.reduce_sum((right_side * here - row * x), axis=1, keepdims=True)
        return i - 1, x + here * value / pivots

    start = [tf.constant(size - 1), tf.zeros_like(right_side)]
    return tf.while_loop(lambda i, _: i >= 0, body, start, maximum_iterations=size)[1]


def _is_diagonal(matrix: tf.Tensor) -> tf.Tensor:
    places = tf.range(matrix.shape[2])
    return (places[:, None] == places)[None]
