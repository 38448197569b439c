"""Windows of a token stream: random ones for training, consecutive ones for evaluation."""

import numpy as np
import tensorflow as tf

from tfdeq.data.shards import shard_rows
from tfdeq.data.streams import check_stream, prefetched, reader


def training_windows(
    tokens: np.ndarray,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    shard: int = 0,
    shards: int = 1,
) -> tf.data.Dataset:
    """Yields an endless sequence of batches of windows at random places of a stream.

    The places of a step depend only on (seed, step): a data set that starts at step s yields the same
    batches as one that started at 0 yields from batch s on.

    Args:
        tokens: [N] integer ids, N > sequence_length.
        sequence_length: T, number of tokens in a window.
        batch_size: B, number of windows in a batch (over all replicas).
        seed: any 64-bit integer.
        start_step: number of batches to skip, at no cost.
        shard, shards: yield the shard-th of `shards` equal parts of each batch; shards must divide B.

    Returns:
        An infinite tf.data.Dataset of (inputs, targets), both [B / shards, T] int32; targets[:, t]
        follows inputs[:, t].

    Raises:
        ValueError: for a stream shorter than T + 1, or an argument out of range.
    """
    _check(tokens, sequence_length=sequence_length, batch_size=batch_size)
    if start_step < 0:
        raise ValueError(f"start_step must be 0 or more; received {start_step}.")
    rows = shard_rows(batch_size, shard, shards)
    places = len(tokens) - sequence_length
    read = reader(tokens, sequence_length)
    seed = tf.constant(seed, tf.int64)

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        starts = tf.random.stateless_uniform(
            [batch_size],
            seed=tf.stack([seed, step]),
            maxval=places,
            dtype=tf.int64,
            alg="philox",  # fixed, so that every machine draws the same places
        )
        return read(starts[rows])

    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    return prefetched(steps.map(batch))


def evaluation_windows(
    tokens: np.ndarray,
    *,
    sequence_length: int,
    batch_size: int,
    max_windows: int | None = None,
) -> tf.data.Dataset:
    """Yields batches of consecutive windows without overlap, once.

    Without `max_windows` every token but the first of the stream is the target of exactly one
    prediction with weight 1. Padding of the last window and the last batch has weight 0. With
    `max_windows`, exactly this many windows are spread evenly over the stream, or all windows if it has
    fewer.

    Args:
        tokens: [N] integer ids.
        sequence_length: T, number of tokens in a window.
        batch_size: B, number of windows in a batch.
        max_windows: largest number of windows, at least 1; None: all.

    Returns:
        A tf.data.Dataset of known cardinality of (inputs, targets, weights), all [B, T]: int32, int32
        and float32.

    Raises:
        ValueError: for a stream shorter than T + 1, or an argument out of range.
    """
    _check(tokens, sequence_length=sequence_length, batch_size=batch_size)
    if max_windows is not None and max_windows < 1:
        raise ValueError(f"max_windows must be 1 or more; received {max_windows}.")
    predictions = len(tokens) - 1
    available = window_count(tokens, sequence_length)
    kept = available if max_windows is None else min(max_windows, available)
    starts = np.arange(kept, dtype=np.int64) * available // kept * sequence_length
    # Rows that start at the end of the stream predict nothing; they pad the last batch.
    starts = np.pad(starts, (0, -kept % batch_size), constant_values=predictions)
    read = reader(tokens, sequence_length)
    offsets = tf.range(sequence_length, dtype=tf.int64)

    def batch(starts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        weights = tf.cast(starts[:, None] + offsets < predictions, tf.float32)
        return *read(starts), weights

    places = tf.data.Dataset.from_tensor_slices(starts).batch(batch_size, drop_remainder=True)
    return prefetched(places.map(batch))


def window_count(tokens: np.ndarray, sequence_length: int) -> int:
    """Returns the number of windows of T tokens in a stream; the last one may be shorter."""
    return -(-(len(tokens) - 1) // sequence_length)


def _check(tokens: np.ndarray, *, sequence_length: int, batch_size: int) -> None:
    check_stream(tokens, sequence_length=sequence_length, batch_size=batch_size)
    if len(tokens) <= sequence_length:
        raise ValueError(
            f"The stream has {len(tokens):,} tokens; a window of {sequence_length} and its "
            f"targets take {sequence_length + 1:,}. Lower the sequence length or give more text."
        )


def spread_windows(tokens: np.ndarray, length: int, count: int) -> np.ndarray:
    """Returns [count, T] int32 windows spread evenly over a stream, T = min(length, its size)."""
    length = min(length, len(tokens))
    starts = np.arange(count) * (len(tokens) - length) // max(count - 1, 1)
    return np.stack([tokens[start : start + length] for start in starts]).astype(np.int32)
