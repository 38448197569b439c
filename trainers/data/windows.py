"""Windows of a token stream: random ones to train on, consecutive ones to evaluate on."""

import numpy as np
import tensorflow as tf

from trainers.data.shards import shard_rows
from trainers.data.streams import check_stream, prefetched, reader


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
    """Yields batches of windows at random places of a stream, for ever.

    The places of a step follow from (seed, step) alone: a data set that starts at step s yields
    what one that started at 0 yields from its batch s on.

    Args:
        tokens: [N] integer ids, N > sequence_length.
        sequence_length: T, tokens in a window.
        batch_size: B, windows in a batch (over all replicas).
        seed: any 64-bit integer.
        start_step: number of batches to pass over, at no cost.
        shard, shards: of each batch's B windows yield the shard-th of so many equal parts; they
            divide B.

    Returns:
        An infinite tf.data.Dataset of (inputs, targets), both [B / shards, T] int32; targets[:, t]
        follows inputs[:, t].

    Raises:
        ValueError: a stream shorter than T + 1, or an argument out of range.
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
            alg="philox",  # named, so that every machine draws the same places
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
    """Yields batches of consecutive windows that do not overlap, once.

    Every batch has B full windows: the last windows that fill no batch are left out, and the last
    tokens that fill no window. With `max_windows`, the windows are spread evenly over the stream.

    Args:
        tokens: [N] integer ids.
        sequence_length: T, tokens in a window.
        batch_size: B, windows in a batch (over all replicas).
        max_windows: windows at most, B or more; None: as many as there are.

    Returns:
        A tf.data.Dataset of known cardinality of (inputs, targets), both [B, T] int32.

    Raises:
        ValueError: a stream too short for one batch, or an argument out of range.
    """
    _check(tokens, sequence_length=sequence_length, batch_size=batch_size)
    if max_windows is not None and max_windows < batch_size:
        raise ValueError(
            f"max_windows={max_windows} is less than one batch of {batch_size}. Raise it or lower "
            "the batch size."
        )
    available = (len(tokens) - 1) // sequence_length
    if available < batch_size:
        raise ValueError(
            f"The stream of {len(tokens):,} tokens has {available} windows of {sequence_length} "
            f"tokens, fewer than one batch of {batch_size}. Lower the batch size or the sequence "
            "length, or give more text."
        )
    index = np.arange(available)
    if max_windows is not None and max_windows < available:
        kept = max_windows - max_windows % batch_size
        index = np.arange(kept) * available // kept
    starts = tf.data.Dataset.from_tensor_slices(index.astype(np.int64) * sequence_length)
    batches = starts.batch(batch_size, drop_remainder=True).map(reader(tokens, sequence_length))
    return prefetched(batches)


def _check(tokens: np.ndarray, *, sequence_length: int, batch_size: int) -> None:
    check_stream(tokens, sequence_length=sequence_length, batch_size=batch_size)
    if len(tokens) <= sequence_length:
        raise ValueError(
            f"The stream has {len(tokens):,} tokens; a window of {sequence_length} and its "
            f"targets take {sequence_length + 1:,}. Lower the sequence length or give more text."
        )
