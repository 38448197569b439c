"""A residual network of images, each of whose blocks has its own weights."""

import keras
from keras import layers, ops

from tfdeq.solvers.solver import require_positive_integer

_MOMENTUM = 0.9


@keras.saving.register_keras_serializable(package="tfdeq")
class ResidualNetwork(layers.Layer):
    """depth blocks relu(x + n(C relu(n(C x)))), with convolutions C of 3 × 3 and batch norms n.

    After each third of the blocks the resolution is halved and the number of channels doubled, as in the
    published networks for small images; there a convolution of 1 × 1 and stride 2 stands in the place of x.

    Args:
        width: channels of the first third.
        depth: number of blocks.

    Call arguments: x [B, H, W, width]. Returns [B, ⌈H / 4⌉, ⌈W / 4⌉, 4 width]; with fewer than three blocks
    fewer halvings.

    Raises:
        ValueError: for sizes below 1.

    Source: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, arXiv:1512.03385,
        section 4.2.

    Example:
        >>> ResidualNetwork(4, 3)(keras.ops.ones([2, 8, 8, 4])).shape
        TensorShape([2, 2, 2, 16])
    """

    def __init__(self, width: int, depth: int, **kwargs):
        super().__init__(**kwargs)
        require_positive_integer("width", width)
        require_positive_integer("depth", depth)
        self.width = width
        self.depth = depth
        self.blocks = []
        before = width
        for place, size in enumerate(_sizes(width, depth)):
            self.blocks.append(
                _Block(size, halves=size != before, dtype=self.dtype_policy, name=f"block_{place}")
            )
            before = size

    def call(self, x, training=None):
        for block in self.blocks:
            x = block(x, training=training)
        return x

    def get_config(self):
        return {**super().get_config(), "width": self.width, "depth": self.depth}


def residual_network_size(width: int, depth: int) -> tuple[int, int]:
    """Returns a `ResidualNetwork`'s number of parameters, with moving statistics, and its last channels."""
    total, before = 0, width
    for size in _sizes(width, depth):
        # A batch norm has gains, shifts, means and variances.
        total += 9 * before * size + 9 * size * size + 8 * size
        if size != before:
            total += before * size + 4 * size
        before = size
    return total, before


@keras.saving.register_keras_serializable(package="tfdeq")
class _Block(layers.Layer):
    """One block; halves: whether the resolution is halved in it."""

    def __init__(self, channels: int, halves: bool, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.halves = channels, halves
        policy, stride = self.dtype_policy, 2 if halves else 1
        self.first = _convolution(channels, 3, stride, dtype=policy, name="first")
        self.second = _convolution(channels, 3, dtype=policy, name="second")
        self.norms = [_norm(dtype=policy, name=f"norm_{place}") for place in range(2)]
        self.beside = self.beside_norm = None
        if halves:
            self.beside = _convolution(channels, 1, 2, dtype=policy, name="beside")
            self.beside_norm = _norm(dtype=policy, name="beside_norm")

    def call(self, x, training=None):
        one, two = self.norms
        found = ops.relu(one(self.first(x), training=training))
        found = two(self.second(found), training=training)
        if self.beside is not None:
            x = self.beside_norm(self.beside(x), training=training)
        return ops.relu(x + found)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels, "halves": self.halves}


def _sizes(width: int, depth: int) -> list[int]:
    """The channels of each block."""
    return [width * 2 ** (3 * place // depth) for place in range(depth)]


def _convolution(channels: int, kernel_size: int, stride: int = 1, **settings) -> layers.Layer:
    initializer = "he_normal"
    return layers.Conv2D(
        channels,
        kernel_size,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer=initializer,
        **settings,
    )


def _norm(**settings) -> layers.Layer:
    return layers.BatchNormalization(momentum=_MOMENTUM, epsilon=1e-5, **settings)
