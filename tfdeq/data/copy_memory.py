"""The copy memory task: ten symbols, many blanks, and then the ten symbols again."""

import tensorflow as tf

from tfdeq.data.shards import shard_rows

SYMBOLS = 8  # 1 … 8
COPIED = 10
VOCABULARY_SIZE = SYMBOLS + 2  # 0 is the blank, 9 asks for the symbols


def copy_memory_batches(
    *,
    memory_length: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    shard: int = 0,
    shards: int = 1,
) -> tf.data.Dataset:
    """Yields batches of new examples, without end.

    An example is x = (s₁ … s₁₀, T − 1 blanks, eleven times 9) with targets (T + 10 blanks, s₁ … s₁₀).
    The examples of a step depend only on (seed, step).

    Args:
        memory_length: T >= 1, number of steps for which the symbols must be remembered.
        batch_size: B, over all replicas.
        seed: any 64-bit integer.
        start_step: number of batches to skip, at no cost.
        shard, shards: yield the shard-th of `shards` equal parts of each batch; shards must divide B.

    Returns:
        An infinite tf.data.Dataset of (tokens, targets), both [B / shards, T + 20] int32.

    Raises:
        ValueError: for a T below 1, or an invalid shard.

    Source: Hochreiter and Schmidhuber, Neural Computation 9(8), 1997; in the form of Bai, Kolter,
        Koltun, arXiv:1803.01271, section 4.
    """
    if memory_length < 1:
        raise ValueError(f"memory_length must be 1 or more; received {memory_length}.")
    rows = shard_rows(batch_size, shard, shards)
    seed = tf.constant(seed, tf.int64)

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        symbols = tf.random.stateless_uniform(
            [batch_size, COPIED],
            seed=tf.stack([seed, step]),
            minval=1,
            maxval=SYMBOLS + 1,
            dtype=tf.int32,
            alg="philox",  # fixed, so that every machine draws the same numbers
        )[rows]
        count = symbols.shape[0]
        blanks = tf.zeros([count, memory_length - 1], tf.int32)
        asking = tf.fill([count, COPIED + 1], SYMBOLS + 1)
        nothing = tf.zeros([count, memory_length + COPIED], tf.int32)
        tokens = tf.concat([symbols, blanks, asking], axis=1)
        return tokens, tf.concat([nothing, symbols], axis=1)

    steps = tf.data.Dataset.range(start_step, tf.int64.max)
    return steps.map(batch).prefetch(tf.data.AUTOTUNE)
