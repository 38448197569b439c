"""Branches of images at falling resolutions, on the grid of the last one.

Branch t of T has 2^t times fewer rows and columns than the first. A cell of s × s places of a branch, s =
2^(T − 1 − t), is one place of the last branch's grid, with s² times the channels. This only changes the
order of the numbers, so lengths stay the same. On that grid a circular map between branches, with
convolutions that may have strides, is an ordinary circular convolution: a shift of its input by one place
shifts its output by one place.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf


def cell_sizes(count: int) -> list[int]:
    """Returns the rows s of a cell of each branch, [T]: 2^(T − 1), …, 2, 1."""
    return [2 ** (count - 1 - place) for place in range(count)]


def joined(branches: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns branches [B, s H, s W, c] as one tensor [B, H, W, Σ s² c]."""
    sizes = cell_sizes(len(branches))
    parts = [to_channels(branch, size) for branch, size in zip(branches, sizes, strict=True)]
    return tf.concat(parts, axis=-1)


def separated(x: tf.Tensor, channels: Sequence[int]) -> list[tf.Tensor]:
    """Returns the branches of `joined`; channels: c of each."""
    sizes = cell_sizes(len(channels))
    widths = [size**2 * count for size, count in zip(sizes, channels, strict=True)]
    parts = tf.split(x, widths, axis=-1)
    return [to_places(part, size) for part, size in zip(parts, sizes, strict=True)]


def to_channels(x: tf.Tensor, size: int) -> tf.Tensor:
    """Returns images [B, s H, s W, c] as [B, H, W, s² c]."""
    return x if size == 1 else tf.nn.space_to_depth(x, size)


def to_places(x: tf.Tensor, size: int) -> tf.Tensor:
    """Returns images [B, H, W, s² c] as [B, s H, s W, c]."""
    return x if size == 1 else tf.nn.depth_to_space(x, size)


def kernel_of(
    function: Callable[[tf.Tensor], tf.Tensor], channels: int, reach: int, dtype: tf.DType
) -> tf.Tensor:
    """Returns the kernel of a circular convolution from its values for one impulse per channel.

    Args:
        function: [n, h, w, n] -> [n, h, w, C], for images of any size, of the last branch's grid.
        channels: n. reach: the number of places that the convolution sees in each direction, at most.
        dtype: of the images.

    Returns:
        [2 reach + 1, 2 reach + 1, n, C].
    """
    impulses = tf.eye(channels, dtype=dtype)[:, tf.newaxis, tf.newaxis]
    sides = [reach, reach]
    values = function(tf.pad(impulses, [[0, 0], sides, sides, [0, 0]]))
    # y[p] = K[middle − p].
    return tf.reverse(tf.transpose(values, [1, 2, 0, 3]), [0, 1])
