"""An ordinary causal Transformer, with different weights in each layer."""

import keras
from keras import ops

from tfdeq.baselines.segment_layer import SegmentLayer, linear
from tfdeq.cells.distance_bias import DistanceBias, hidden_where
from tfdeq.solvers.solver import require_positive_integer

_EPSILON = 1e-5  # of the norms, as in TransformerCell


@keras.saving.register_keras_serializable(package="tfdeq")
class TransformerStack(SegmentLayer):
    """a = x + drop(Attention(norm(x))), x ← a + drop(MLP(norm(a))), L times with different weights.

    It has the same parts as `tfdeq.cells.TransformerCell`: root-mean-square norms without gains, linear
    maps without biases that start as N(0, 1 / fan_in), causal attention with a learned bias per head
    and distance (`tfdeq.cells.distance_bias`), here one table per layer, and an MLP with the tanh form
    of GELU. The output is not normalised.

    Args:
        width: d, divisible by heads; also n, the features of the input.
        heads: attention heads.
        sequence_length: the longest T, if there is no span.
        layers: L.
        feedforward: hidden size of the MLPs. Default: 4 · width.
        dropout: rate for the outputs of attention and MLP, in [0, 1]: one mask per sample, the same at
            all positions. Default 0.
        span: number of positions that attention sees, including its own. T is then unlimited, and the
            memory holds span − 1 positions. Default: all T positions, without a memory.

    Call arguments: x [B, T, d], memory, mask: see `SegmentLayer`. The carried memory is a dict: length
    [B] int32, how many places are filled, counted from the end; key and value, lists with one tensor
    [B, span − 1, heads, d / heads] per layer. Returns [B, T, d], or a pair of it and the next memory.

    Raises:
        ValueError: for sizes below 1, a width that is not divisible by heads, an input of another
            width, a T beyond sequence_length without a span, or a memory without a span.

    Source: Vaswani et al., arXiv:1706.03762, section 3; pre-norm: Xiong et al., arXiv:2002.04745;
        linear biases: Press, Smith, Lewis, arXiv:2108.12409; memory: Dai et al., Transformer-XL,
        arXiv:1901.02860, section 3.2.

    Example:
        >>> layer = TransformerStack(width=8, heads=2, sequence_length=5, layers=3)
        >>> layer(keras.ops.ones([2, 5, 8])).shape
        TensorShape([2, 5, 8])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        sequence_length: int,
        layers: int,
        feedforward: int | None = None,
        dropout: float = 0.0,
        span: int | None = None,
        **kwargs,
    ):
        super().__init__(width, layers, dropout, **kwargs)
        self.heads = heads
        self.sequence_length = sequence_length
        self.feedforward = 4 * width if feedforward is None else feedforward
        self.span = span
        for name in ("heads", "sequence_length", "feedforward"):
            require_positive_integer(name, getattr(self, name))
        if span is not None:
            require_positive_integer("span", span)
        if width % heads:
            raise ValueError(f"heads must divide width; received width {width}, heads {heads}.")
        self.blocks = [
            _Block(
                width,
                heads,
                self.feedforward,
                reach=span or sequence_length,
                dropout=self.dropout,
                dtype=self.dtype_policy,
                name=f"block_{index}",
            )
            for index in range(layers)
        ]

    def build(self, x_shape):
        super().build(x_shape)
        if self.features != self.width:
            raise ValueError(
                f"x must have {self.width} features, the width; received shape {tuple(x_shape)}. "
                "Project it first."
            )
        for block in self.blocks:
            block.build(x_shape)

    def _memory_spec(self):
        if self.span is None:
            raise ValueError(
                f"{self.name} has no carried memory, because it sees the whole text of at most "
                f"{self.sequence_length} positions. Give it a span, the number of positions that "
                "attention sees."
            )
        shape = (self.span - 1, self.heads, self.width // self.heads)
        return {
            "key": [self._place(*shape) for _ in self.blocks],
            "length": self._place(dtype="int32"),
            "value": [self._place(*shape) for _ in self.blocks],
        }

    def _advance(self, x, memory, training):
        length = x.shape[1]
        if self.span is None and length is not None and length > self.sequence_length:
            raise ValueError(
                f"x must be at most {self.sequence_length} long, the sequence_length; received shape "
                f"{tuple(x.shape)}. Cut the text into windows, or give a span."
            )
        if memory is None:
            for block in self.blocks:
                x, _, _ = block(x, training=training)
            return x, None
        length, places = ops.shape(x)[1], self.span - 1
        # If there are fewer earlier positions than places, the first places are empty.
        empty = ops.arange(places + length)[None, :] < places - memory["length"][:, None]
        taken = ops.minimum(memory["length"] + length, places)
        after = {"key": [], "length": taken, "value": []}
        for block, *past in zip(self.blocks, memory["key"], memory["value"], strict=True):
            x, key, value = block(x, past, empty, training=training)
            after["key"].append(key[:, length:])
            after["value"].append(value[:, length:])
        return x, after

    def get_config(self):
        return {
            **super().get_config(),
            "heads": self.heads,
            "sequence_length": self.sequence_length,
            "feedforward": self.feedforward,
            "span": self.span,
        }


class _Block(keras.layers.Layer):
    """One layer: [B, T, d] -> [B, T, d], and the keys and values that it saw."""

    def __init__(self, width, heads, feedforward, reach, dropout, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.heads, self.size = heads, width // heads
        self.query_key_value = linear(3 * width, dtype=self.dtype_policy, name="query_key_value")
        self.attention_output = linear(width, dtype=self.dtype_policy, name="attention_output")
        self.expand = linear(feedforward, dtype=self.dtype_policy, name="expand")
        self.contract = linear(width, dtype=self.dtype_policy, name="contract")
        self.distance_bias = DistanceBias(
            reach, heads, dtype=self.dtype_policy, name="distance_bias"
        )
        self.attention_dropout, self.feedforward_dropout = (
            keras.layers.SpatialDropout1D(dropout, dtype=self.dtype_policy, name=f"{place}_dropout")
            for place in ("attention", "feedforward")
        )

    def build(self, x_shape):
        for layer in (self.query_key_value, self.attention_output, self.expand):
            layer.build(x_shape)
        self.contract.build((None, None, self.expand.units))

    def call(self, x, past=None, empty=None, training=None):
        attended, key, value = self._attend(_norm(x), past, empty)
        x = x + self.attention_dropout(self.attention_output(attended), training=training)
        hidden = ops.gelu(self.expand(_norm(x)), approximate=True)
        x = x + self.feedforward_dropout(self.contract(hidden), training=training)
        return x, key, value

    def _attend(self, x, past, empty):
        """Returns attention to x and the positions before it, and all keys and values, [B, P + T, …]."""
        batch, length, width = ops.shape(x)
        split = (batch, length, 3, self.heads, self.size)
        query, key, value = ops.unstack(ops.reshape(self.query_key_value(x), split), axis=2)
        if past is None:
            bias = self.distance_bias.causal(length)
        else:
            bias = self.distance_bias.causal(length, before=past[0].shape[1])
            bias = hidden_where(empty, bias)
            key, value = (
                ops.concatenate(pair, axis=1) for pair in zip(past, (key, value), strict=True)
            )
        # Keras would compute the square root in float32 for every dtype.
        attended = ops.dot_product_attention(query, key, value, bias, scale=self.size**-0.5)
        return ops.reshape(attended, (batch, length, width)), key, value


def _norm(x):
    return ops.rms_normalization(x, epsilon=_EPSILON)
