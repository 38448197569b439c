"""Examples with targets in memory: shuffled for training, each once for evaluation."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdeq.data.shards import shard_rows

Split = tuple[Any, Any]  # inputs and targets, each an array [N, …] or a dict of arrays


class Examples(NamedTuple):
    """Three splits of examples: inputs and targets, arrays [N, …] or dicts of arrays."""

    train: Split
    validation: Split
    test: Split

    def fingerprint(self) -> str:
        """Returns the hex SHA-256 of all arrays: equal only for equal data."""
        digest = hashlib.sha256()
        for leaf in tf.nest.flatten(list(self)):
            leaf = np.ascontiguousarray(leaf)
            digest.update(f"{leaf.dtype.str} {leaf.shape}\n".encode())
            digest.update(leaf.data)
        return digest.hexdigest()


def training_examples(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    shard: int = 0,
    shards: int = 1,
    augment: Callable[[Any, Any, tf.Tensor], tuple[Any, Any]] | None = None,
) -> tf.data.Dataset:
    """Yields batches of a split without end, each epoch in its own order.

    The examples of a step depend only on (seed, step). A batch may span two epochs.

    Args:
        split: inputs and targets, N examples.
        batch_size: B, over all replicas.
        seed: any 64-bit integer.
        start_step: number of batches to skip, at no cost.
        shard, shards: yield the shard-th of `shards` equal parts of each batch; shards must divide B.
        augment: (inputs, targets, seed [2] int32) -> like inputs and targets. It is called in the graph
            for each whole batch, before the shard's rows are taken, with a seed computed from (seed,
            step). So a row does not depend on the number of shards. None: no augmentation.

    Returns:
        An infinite tf.data.Dataset of (inputs, targets), each [B / shards, …].

    Raises:
        ValueError: for no examples, different numbers of inputs and targets, or an invalid shard.
    """
    count = _count(split)
    rows = shard_rows(batch_size, shard, shards)
    # Augmentation needs the whole batch, because a row's random numbers depend on its place in it.
    places = tf.range(batch_size, dtype=tf.int64)[rows if augment is None else slice(None)]
    leaves = tf.nest.map_structure(tf.constant, split)
    key = tf.constant([seed % 2**31, seed // 2**31 % 2**31], tf.int64)

    def batch(step: tf.Tensor) -> Any:
        place = step * batch_size + places
        seeds = tf.concat([tf.tile(key[None], [len(places), 1]), (place // count)[:, None]], axis=1)
        # The position in a permutation of the epoch's examples, without storing the permutation.
        # (The raw op takes a seed for each index, tf.random.experimental.index_shuffle only one for
        # all.)
        order = tf.raw_ops.RandomIndexShuffle(
            index=place % count, seed=seeds, max_index=tf.constant(count - 1, tf.int64)
        )
        examples = tf.nest.map_structure(lambda leaf: tf.gather(leaf, order), leaves)
        if augment is None:
            return examples
        drawn = tf.random.stateless_uniform(
            [2], tf.stack([key[0] + key[1] * 2**31, step]), None, None, tf.int32, alg="philox"
        )
        return tf.nest.map_structure(lambda leaf: leaf[rows], tuple(augment(*examples, drawn)))

    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    return steps.map(batch).prefetch(tf.data.AUTOTUNE)


def evaluation_examples(split: Split, batch_size: int) -> Iterator[tuple[Any, Any, np.ndarray]]:
    """Yields each example once, in batches of the same shape.

    Yields:
        (inputs, targets, weights), where weights [B] float32 is 0 for copies that pad the last batch.

    Raises:
        ValueError: for no examples, or different numbers of inputs and targets.
    """
    count = _count(split)
    # With as few padding rows in the last batch as possible.
    batch_size = -(-count // -(-count // batch_size))
    for start in range(0, count, batch_size):
        rows = np.arange(start, start + batch_size)
        inputs, targets = tf.nest.map_structure(
            lambda leaf, rows=rows: np.take(leaf, rows % count, axis=0), split
        )
        yield inputs, targets, (rows < count).astype(np.float32)


def _count(split: Split) -> int:
    counts = {len(leaf) for leaf in tf.nest.flatten(split)}
    if len(counts) != 1 or not min(counts):
        raise ValueError(
            "A split must have as many inputs as targets, and one example at least; received arrays of "
            f"{sorted(counts)} rows."
        )
    return counts.pop()
