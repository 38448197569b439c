"""Places divided into blocks with margins: their indices in padded arrays, and their neighbours."""

import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf


class BlockGrid:
    """Places [B, P₁ (, P₂)] divided into blocks, in arrays with a margin.

    Args:
        rank: number of dimensions of the places. shape: shape of the state, [B, places, d]. block: size
            of a block along each dimension. halo: width of the margin.

    Attributes:
        count: number of blocks per sample. halo: as above.
    """

    def __init__(self, rank: int, shape: tf.Tensor, block: int, halo: int):
        self.rank, self.block, self.halo = rank, block, halo
        self._batch, self._sizes = shape[0], [shape[1 + axis] for axis in range(rank)]
        self._blocks = [-(-size // block) for size in self._sizes]
        self.count = tf.cast(_product(self._blocks), tf.int64)
        self._padded = [blocks * block + 2 * halo for blocks in self._blocks]

    def padded(self, leaf: tf.Tensor) -> tf.Tensor:
        """[B, places, k, …] -> [B · padded places, k, …]."""
        ends = zip(self._padded, self._sizes, strict=True)
        around = [[self.halo, padded - size - self.halo] for padded, size in ends]
        padded = tf.pad(leaf, [[0, 0], *around, *[[0, 0]] * (leaf.shape.rank - 1 - self.rank)])
        return tf.reshape(padded, tf.concat([[-1], tf.shape(leaf)[1 + self.rank :]], axis=0))

    def unpadded(self, flat: tf.Tensor) -> tf.Tensor:
        """[B · padded places, d] -> [B, places, d]."""
        whole = tf.reshape(flat, [self._batch, *self._padded, flat.shape[-1]])
        cut = tuple(slice(self.halo, self.halo + size) for size in self._sizes)
        return whole[(slice(None), *cut)]

    def windows(self, blocks: tf.Tensor) -> tf.Tensor:
        """[n, places of a window] int64: indices of the windows of blocks in a padded array."""
        sample, rest = blocks // self.count, blocks % self.count
        place = sample
        offset = tf.zeros([1], tf.int64)
        starts = []
        for number in reversed(self._blocks):
            starts.insert(0, rest % tf.cast(number, tf.int64) * self.block)
            rest = rest // tf.cast(number, tf.int64)
        for start, size in zip(starts, self._padded, strict=True):
            size = tf.cast(size, tf.int64)
            place = place * size + start
            within = tf.range(self.block + 2 * self.halo, dtype=tf.int64)
            offset = tf.reshape(offset[:, None] * size + within[None], [-1])
        return place[:, None] + offset[None]

    def as_places(self, windows: tf.Tensor) -> tf.Tensor:
        """[n, places of a window, …] -> [n, window (, window), …]."""
        side = [self.block + 2 * self.halo] * self.rank
        shape = tf.concat([[-1], side, tf.shape(windows)[2:]], axis=0)
        return tf.ensure_shape(tf.reshape(windows, shape), [None, *side, *windows.shape[2:]])

    def interior(self, windows: tf.Tensor, flat: bool = False) -> tf.Tensor:
        """The blocks themselves: [n, places of a block, …].

        flat: whether the windows have one dimension, as `windows` returns them.
        """
        places = self.as_places(windows) if flat else windows
        own = slice(self.halo, self.halo + self.block)
        places = places[(slice(None), *[own] * self.rank)]
        shape = tf.concat([[-1, self.block**self.rank], tf.shape(places)[1 + self.rank :]], axis=0)
        return tf.reshape(places, shape)

    def oldest_around(self, active: tf.Tensor, since: tf.Tensor) -> tf.Tensor:
        """[B, blocks] bool: active blocks that have waited longest among their active neighbours."""
        never = since.dtype.max
        order = since * self.count + tf.range(self.count)[None]
        grid = tf.reshape(tf.where(active, order, never), [-1, *self._blocks])
        found = grid < never
        for direction in self._directions:
            found &= grid < self._at(grid, direction, never)
        return tf.reshape(found, tf.shape(active))

    def moved(self, change: tf.Tensor) -> tf.Tensor:
        """[n, places of a block, d] -> [n, 1 + directions]: how far the blocks and their sides moved."""
        squares = tf.reduce_sum(change**2, axis=-1)
        squares = tf.reshape(squares, [-1, *[self.block] * self.rank])
        zones = {-1: slice(self.halo), 0: slice(None), 1: slice(self.block - self.halo, None)}
        found = []
        for direction in ((0,) * self.rank, *self._directions):
            zone = squares[(slice(None), *(zones[step] for step in direction))]
            found.append(tf.reduce_sum(zone, axis=list(range(1, self.rank + 1))))
        return tf.sqrt(tf.stack(found, axis=1))

    def woken(self, blocks: tf.Tensor, moved: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
        """[B, blocks] bool: blocks that moved, and neighbours of sides that moved.

        Args:
            blocks: [n]. moved: [n, 1 + directions] bool. shape: shape of the result.
        """
        count = tf.reduce_prod(tf.cast(shape, tf.int64))
        flags = (
            tf.scatter_nd(blocks[:, None], tf.cast(moved, tf.int32), [count, moved.shape[1]]) > 0
        )
        flags = tf.reshape(flags, [-1, *self._blocks, moved.shape[1]])
        found = flags[..., 0]
        for number, direction in enumerate(self._directions, 1):
            # A block wakes its neighbour in a direction, for which the block lies in the opposite
            # direction.
            found |= self._at(flags[..., number], tuple(-step for step in direction), False)
        return tf.reshape(found, shape)

    @property
    def _directions(self) -> list[tuple[int, ...]]:
        """The directions of the neighbours of a block, including diagonal ones."""
        every = itertools.product((-1, 0, 1), repeat=self.rank)
        return [direction for direction in every if any(direction)]

    def _at(self, grid: tf.Tensor, direction: tuple[int, ...], beyond: Any) -> tf.Tensor:
        """[B, blocks, …]: for each block, the value of its neighbour in a direction; beyond: that outside."""
        wide = tf.pad(grid, [[0, 0], *[[1, 1]] * self.rank], constant_values=beyond)
        for axis, (step, size) in enumerate(zip(direction, self._blocks, strict=True), 1):
            wide = tf.gather(wide, tf.range(1 + step, 1 + step + size), axis=axis)
        return wide

    def flat(self, leaf: tf.Tensor) -> tf.Tensor:
        """[B, places, d] -> [B, all places, d]."""
        return tf.reshape(leaf, [self._batch, -1, leaf.shape[-1]])

    def by_block(self, leaf: tf.Tensor) -> tf.Tensor:
        """[B, places, d] -> [B, blocks], the Euclidean length of each block."""
        squares = tf.reduce_sum(leaf**2, axis=-1)
        ends = zip(self._blocks, self._sizes, strict=True)
        squares = tf.pad(
            squares, [[0, 0], *[[0, blocks * self.block - size] for blocks, size in ends]]
        )
        shape = [self._batch]
        for blocks in self._blocks:
            shape += [blocks, self.block]
        sums = tf.reduce_sum(tf.reshape(squares, shape), axis=[2 + 2 * k for k in range(self.rank)])
        return tf.sqrt(tf.reshape(sums, [self._batch, -1]))


def _product(values: Sequence[Any]) -> Any:
    result = 1
    for value in values:
        result = result * value
    return result
