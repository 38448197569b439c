"""Functions shared by windows and segments of a token stream."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf


def check_stream(tokens: np.ndarray, *, sequence_length: int, batch_size: int) -> None:
    """Raises ValueError for sizes below 1, or tokens that are not [N] integers."""
    for name, value in (("sequence_length", sequence_length), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more; received {value}.")
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"tokens must be a 1-D array of integer ids; received shape {tokens.shape}, dtype "
            f"{tokens.dtype}."
        )


def reader(
    tokens: np.ndarray, sequence_length: int
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Returns a function from [B] int64 starts to (inputs, targets), both [B, T] int32.

    After the end of the stream its last token is repeated.
    """
    with tf.device("/CPU:0"):  # where input pipelines run; a stream on the GPU would be copied back
        stream = tf.constant(tokens)
    offsets = tf.range(sequence_length + 1, dtype=tf.int64)

    def read(starts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        places = tf.minimum(starts[:, None] + offsets, len(tokens) - 1)
        found = tf.cast(tf.gather(stream, places), tf.int32)
        return found[:, :-1], found[:, 1:]

    return read


def prefetched(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Returns batches that are prefetched and shared among workers by `distribute`."""
    options = tf.data.Options()
    # Workers share the batches. There are no files to share, about which AUTO would print a long
    # warning.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.prefetch(tf.data.AUTOTUNE).with_options(options)
