"""A temporal convolutional network: dilated causal convolutions in residual blocks."""

import keras
from keras import ops

from tfdeq.baselines.segment_layer import SegmentLayer, causal_windows
from tfdeq.solvers.solver import require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
class TemporalConvolution(SegmentLayer):
    """h_b = relu(skip(h_{b−1}) + F_b(h_{b−1})), F_b = (drop ∘ relu ∘ conv) twice, for b = 0 … L − 1.

    The convolutions of block b are causal, with taps 2^b apart, a bias, and weight normalisation: the
    length and the direction of each output's weights are learned separately. skip is the identity, or a
    1 × 1 convolution if n differs from d. Weights start as N(0, 1 / fan_in), biases as zero.

    Args:
        width: d, channels of every convolution.
        layers: L, the number of blocks with two convolutions each.
        kernel_size: k, the number of taps of a convolution. Default 3.
        dropout: rate after each convolution, in [0, 1]: one mask per sample, the same at all positions.
            Default 0.

    Call arguments: x [B, T, n], memory, mask: see `SegmentLayer`. The carried memory is a list with a
    dict for each block, which has the last (k − 1) 2^b positions that its two convolutions see: first
    [B, …, n or d] and second [B, …, d]. Returns [B, T, d], or a pair of it and the next memory.

    Raises:
        ValueError: for sizes below 1.

    Source: Bai, Kolter, Koltun, arXiv:1803.01271, section 3; weight normalisation: Salimans, Kingma,
        arXiv:1602.07868.

    Example:
        >>> layer = TemporalConvolution(width=8, layers=3)
        >>> layer(keras.ops.ones([2, 5, 3])).shape
        TensorShape([2, 5, 8])
    """

    def __init__(
        self, width: int, layers: int, kernel_size: int = 3, dropout: float = 0.0, **kwargs
    ):
        super().__init__(width, layers, dropout, **kwargs)
        require_positive_integer("kernel_size", kernel_size)
        self.kernel_size = kernel_size
        self.first, self.second = (
            [self._convolution(f"{place}_{block}") for block in range(layers)]
            for place in ("first", "second")
        )
        self.first_dropout, self.second_dropout = (
            [self._locked_dropout(f"{place}_dropout_{block}") for block in range(layers)]
            for place in ("first", "second")
        )
        self.skip = None  # made at build, if n differs from d

    def build(self, x_shape):
        super().build(x_shape)
        for block, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            features = self.width if block else self.features
            first.build((None, None, self.kernel_size * features))
            second.build((None, None, self.kernel_size * self.width))
        if self.features != self.width:
            self.skip = self._linear(self.width, "skip", use_bias=True)
            self.skip.build(x_shape)

    def _memory_spec(self):
        features = [self._known_features()] + [self.width] * (self.depth - 1)
        return [
            {
                "first": self._place(self._reach(block), features[block]),
                "second": self._place(self._reach(block), self.width),
            }
            for block in range(self.depth)
        ]

    def _advance(self, x, memory, training):
        before = self.initial_memory(ops.shape(x)[0]) if memory is None else memory
        h, after = x, []
        for block in range(self.depth):
            skip = self.skip(h) if block == 0 and self.skip is not None else h
            states = {}
            for place in ("first", "second"):
                h, states[place] = self._convolve(place, block, before[block][place], h)
                h = getattr(self, f"{place}_dropout")[block](h, training=training)
            h = ops.relu(skip + h)
            after.append(states)
        return h, after

    def _convolve(self, place: str, block: int, before, h):
        """Returns relu(conv(h)) and the positions of h that the next segment sees."""
        joined = ops.concatenate([before, h], axis=1)
        windows = causal_windows(joined, self.kernel_size, 2**block)
        output = ops.relu(getattr(self, place)[block](windows))
        return output, joined[:, ops.shape(h)[1] :]

    def _reach(self, block: int) -> int:
        """Returns how many positions back a block's convolution sees."""
        return (self.kernel_size - 1) * 2**block

    def _convolution(self, name: str) -> keras.layers.Layer:
        return self._linear(self.width, name, normalization="weight", use_bias=True)

    def get_config(self):
        return {**super().get_config(), "kernel_size": self.kernel_size}
