"""Batches that are computed in parts, where a layer draws the same random numbers in each part."""

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

_ACTIVE = threading.local()


class BatchPart:
    """One of the equal parts of a batch, in order: the share of a replica, or a part of it.

    Args:
        index: index of the part, from 0: an integer or a scalar int32. count: number of parts.
        seed: [2] integers, the same for all parts of a batch and new for each batch.
    """

    def __init__(self, index: Any, count: int, seed: Any):
        self.index, self.count = index, count
        self._seed = tf.cast(tf.convert_to_tensor(seed), tf.int64)
        self._draws = 0

    def next_seed(self) -> tf.Tensor:
        """Returns a seed, [2] int64, that differs between calls but is the same in every part."""
        self._draws += 1
        return tf.random.experimental.stateless_fold_in(
            self._seed, tf.constant(self._draws, tf.int64)
        )


@contextlib.contextmanager
def part_of_batch(index: Any, count: int, seed: Any) -> Iterator[None]:
    """A context in which layers of this thread are called with one part of a batch; see `BatchPart`.

    Every part must make the same calls in the same order. The mean over the parts of what a layer adds
    to the loss equals what it would add for the whole batch.
    """
    before = current()
    _ACTIVE.part = BatchPart(index, count, seed)
    try:
        yield
    finally:
        _ACTIVE.part = before


def current() -> BatchPart | None:
    """Returns the part that this thread computes; None if it computes the whole batch."""
    return getattr(_ACTIVE, "part", None)


class ChosenRows(NamedTuple):
    """The chosen rows of a part, and their positions among all chosen rows of the batch."""

    total: Any  # R, number of chosen rows in the whole batch: an integer, or a scalar int32
    numbers: tf.Tensor | None  # [m] int32, their positions among these; None: they are all
    rows: tf.Tensor  # [m] int32, their indices in the part
    there: tf.Tensor | None  # [m] bool, False for padding of the shape; None: no padding


def choose_rows(batch: Any, fraction: float, seed: Any, part: BatchPart | None) -> ChosenRows:
    """Chooses a share of a batch's rows, evenly spaced from a random first row, all equally likely.

    Since they are evenly spaced, they are also evenly divided among any number of parts.

    Args:
        batch: number of rows of the part, an integer or a scalar int32. fraction: in (0, 1], rounded up
            to whole rows.
        seed: [2] integers, the same in all parts.
        part: the part that the rows belong to, or None.
    """
    index, parts = (0, 1) if part is None else (part.index, part.count)
    whole = batch * parts
    if isinstance(batch, int):
        total = math.ceil(whole * fraction)
        most = -(-total // parts)
    else:
        total = tf.cast(tf.math.ceil(tf.cast(whole, tf.float64) * fraction), tf.int32)
        most = -(-total // parts)
    batch, whole, chosen, index = (tf.cast(n, tf.int64) for n in (batch, whole, total, index))
    chosen, spacing = tf.maximum(chosen, 1), tf.maximum(whole, 1)
    # Row r of the batch owns the integers [r · chosen, (r + 1) · chosen). The chosen rows own the
    # integers first + number · whole, which hit every row with the same probability.
    first = tf.random.stateless_uniform(
        [], tf.cast(seed, tf.int64), minval=0, maxval=spacing, dtype=tf.int64
    )
    start = tf.maximum(-((first - index * batch * chosen) // spacing), 0)
    numbers = start + tf.range(tf.cast(most, tf.int64))
    rows = (first + numbers * spacing) // chosen - index * batch
    if parts == 1:
        return ChosenRows(total, None, tf.cast(rows, tf.int32), None)
    there = (rows < batch) & (numbers < chosen)
    rows = tf.clip_by_value(rows, 0, tf.maximum(batch - 1, 0))
    numbers = tf.minimum(numbers, chosen - 1)
    return ChosenRows(total, tf.cast(numbers, tf.int32), tf.cast(rows, tf.int32), there)
