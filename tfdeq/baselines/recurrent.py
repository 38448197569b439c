"""A stack of LSTMs or GRUs."""

import keras

from tfdeq.baselines.segment_layer import SegmentLayer
from tfdeq.numerics.fixed_shapes import shapes_are_fixed

_KINDS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}


@keras.saving.register_keras_serializable(package="tfdeq")
class Recurrent(SegmentLayer):
    """y = drop(RNN_L(drop(… RNN_1(drop(x))))), with RNN an LSTM or a GRU of Keras.

    Args:
        width: d, units of every layer.
        layers: L. Default 1.
        kind: "lstm" or "gru". Default "lstm".
        dropout: rate for the input of each layer and for the output, in [0, 1]: one mask per sample,
            the same at all positions (variational dropout). Default 0.

    Call arguments: x [B, T, n], memory, mask: see `SegmentLayer`. The carried memory is a list with one
    list of states [B, d] per layer: h and c, or h. Returns [B, T, d], or a pair of it and the next
    memory.

    On a GPU, Keras uses cuDNN in eager mode and in graphs. XLA cannot compile cuDNN's layers, so under
    XLA the same equations run as a loop.

    Raises:
        ValueError: for sizes below 1 or another kind.

    Source: Hochreiter, Schmidhuber, Long Short-Term Memory, 1997; Cho et al., arXiv:1406.1078;
        variational dropout: Gal, Ghahramani, arXiv:1512.05287.

    Example:
        >>> Recurrent(width=8, layers=2, kind="gru")(keras.ops.ones([2, 5, 3])).shape
        TensorShape([2, 5, 8])
    """

    def __init__(
        self, width: int, layers: int = 1, kind: str = "lstm", dropout: float = 0.0, **kwargs
    ):
        super().__init__(width, layers, dropout, **kwargs)
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}; received {kind!r}.")
        self.kind = kind
        self.stack = [
            _KINDS[kind](
                width,
                return_sequences=True,
                return_state=True,
                dtype=self.dtype_policy,
                name=f"{kind}_{index}",
            )
            for index in range(layers)
        ]
        self.input_dropouts = [
            self._locked_dropout(f"input_dropout_{index}") for index in range(layers)
        ]
        self.output_dropout = self._locked_dropout("output_dropout")

    def build(self, x_shape):
        super().build(x_shape)
        for index, layer in enumerate(self.stack):
            layer.build((None, None, self.width if index else self.features))

    def _memory_spec(self):
        states = {"lstm": 2, "gru": 1}[self.kind]
        return [[self._place(self.width) for _ in range(states)] for _ in self.stack]

    def _advance(self, x, memory, training):
        h, after = x, []
        before = [None] * self.depth if memory is None else memory
        for layer, dropout, states in zip(self.stack, self.input_dropouts, before, strict=True):
            layer.use_cudnn = False if shapes_are_fixed() else "auto"
            h = dropout(h, training=training)
            h, *states = layer(h, initial_state=states, training=training)
            after.append(states)
        return self.output_dropout(h, training=training), after

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}
