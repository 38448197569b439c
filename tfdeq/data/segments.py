"""Segments of a token stream in order: each batch continues the rows of the previous one."""

import numpy as np
import tensorflow as tf

from tfdeq.data.shards import shard_rows
from tfdeq.data.streams import check_stream, prefetched, reader


def training_segments(
    tokens: np.ndarray,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    shard: int = 0,
    shards: int = 1,
) -> tf.data.Dataset:
    """Yields an endless sequence of batches whose rows continue those of the previous batch.

    The stream is divided into B rows of equal length, which are read from left to right, T tokens per
    step. At their end the stream is divided again, starting at another of its first T tokens, so that
    segments begin elsewhere. The tokens of a step depend only on (seed, step).

    Args:
        tokens: [N] integer ids, at least B T + T + 1.
        sequence_length: T, number of tokens in a segment.
        batch_size: B, number of rows (over all replicas).
        seed: any 64-bit integer.
        start_step: number of batches to skip, at no cost.
        shard, shards: yield the shard-th of `shards` equal parts of each batch; shards must divide B.

    Returns:
        An infinite tf.data.Dataset of (inputs, targets, continues): [B / shards, T] int32 twice;
        targets[:, t] follows inputs[:, t]; [B / shards] bool: False at the beginning of the text.

    Raises:
        ValueError: for a stream that is too short, or an argument out of range.
    """
    _check(tokens, sequence_length, batch_size)
    row = (len(tokens) - 1 - sequence_length) // batch_size
    steps = row // sequence_length
    if steps < 1:
        raise ValueError(
            f"The stream of {len(tokens):,} tokens is too short for {batch_size} rows of segments of "
            f"{sequence_length} tokens. Lower the batch size or the sequence length, or give more text."
        )
    if start_step < 0:
        raise ValueError(f"start_step must be 0 or more; received {start_step}.")
    read = reader(tokens, sequence_length)
    rows = tf.range(batch_size, dtype=tf.int64)[shard_rows(batch_size, shard, shards)] * row
    seed = tf.constant(seed, tf.int64)

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        first = tf.random.stateless_uniform(
            [],
            seed=tf.stack([seed, step // steps]),
            maxval=sequence_length,
            dtype=tf.int64,
            alg="philox",  # fixed, so that every machine draws the same numbers
        )
        place = step % steps
        inputs, targets = read(first + rows + place * sequence_length)
        return inputs, targets, tf.fill(tf.shape(rows), place > 0)

    counter = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    return prefetched(counter.map(batch))


def evaluation_segments(
    tokens: np.ndarray, *, sequence_length: int, batch_size: int
) -> tf.data.Dataset:
    """Yields the whole stream once, in batches whose rows continue those of the previous batch.

    The stream is divided into B rows; every token but the first is the target of exactly one prediction
    with weight 1. Padding of the last segments has weight 0.

    Args:
        tokens: [N] integer ids, N >= 2.
        sequence_length: T, number of tokens in a segment. batch_size: B, number of rows.

    Returns:
        A tf.data.Dataset of known cardinality of (inputs, targets, weights), all [B, T]: int32, int32
        and float32.

    Raises:
        ValueError: for a stream that is too short, or an argument out of range.
    """
    _check(tokens, sequence_length, batch_size)
    predictions = len(tokens) - 1
    row = -(-predictions // batch_size)
    read = reader(tokens, sequence_length)
    starts = tf.range(batch_size, dtype=tf.int64) * row
    offsets = tf.range(sequence_length, dtype=tf.int64)

    def batch(place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        inputs, targets = read(starts + place)
        column = (place + offsets)[None, :]
        weights = tf.cast((column < row) & (starts[:, None] + column < predictions), tf.float32)
        return inputs, targets, weights

    places = tf.data.Dataset.range(0, row, sequence_length)
    return prefetched(places.map(batch))


def _check(tokens: np.ndarray, sequence_length: int, batch_size: int) -> None:
    check_stream(tokens, sequence_length=sequence_length, batch_size=batch_size)
    if len(tokens) < 2:
        raise ValueError(
            f"tokens must be at least two; received shape {tokens.shape}. Give more text."
        )
