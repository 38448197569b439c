"""TrellisNet: one gated causal convolution, applied a fixed number of times."""

import keras
from keras import ops

from tfdeq.baselines.segment_layer import SegmentLayer, causal_windows
from tfdeq.solvers.solver import require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
class TrellisNetwork(SegmentLayer):
    """h'_t = σ(o_t) tanh(c'_t) with c'_t = σ(f_t) c_{t−1} + σ(i_t) tanh(g_t), L times from h = c = 0.

    h and c belong to the layer below, h' and c' to this layer. All layers share the convolution of the
    gates, here of kernel size k = 2: (i, o, g, f)_t = h_{t−1} W_1 + h_t W_2 + x_{t−1} U_1 + x_t U_2 +
    b. Before the first position, h, c and x are zero, or come from the memory.

    The weights are those of `tfdeq.cells.TrellisCell`, in the same order. As L grows, the output
    converges to the equilibrium of that cell, if it is stable. W and U start as N(0, 1 / fan_in), b as
    zero.

    Args:
        width: d, size of h and c per position.
        layers: L.
        kernel_size: k >= 1, number of positions that a gate sees, ending with its own. Default 2.
        dropout: rate for the h that enters the convolution, in [0, 1]: one mask per sample, the same at
            all positions and in all layers (variational dropout). Default 0.
        weight_dropout: rate for the entries of W, in [0, 1]: one mask for the batch, the same in all
            layers (DropConnect). Default 0.
        normalization: of W and U. None, "weight" or "spectral"; see `tfdeq.cells.normalized_dense`.
            Default "weight", as in the source.

    Call arguments: x [B, T, n], memory, mask: see `SegmentLayer`. The carried memory is a dict: input
    [B, k − 1, n], the last positions; h and c, lists with the last h [B, k − 1, d] and c [B, d] of each
    layer but the last. Returns [B, T, d], or a pair of it and the next memory. In half precision the
    gates are applied and c is stored in float32.

    Raises:
        ValueError: for sizes below 1 or another normalization.

    Source: Bai, Kolter, Koltun, Trellis Networks for Sequence Modeling, arXiv:1810.06682, sections 4
        and 5; variational dropout: Gal, Ghahramani, arXiv:1512.05287; weight dropout: Merity, Keskar,
        Socher, arXiv:1708.02182, section 2.

    Example:
        >>> TrellisNetwork(width=8, layers=6)(keras.ops.ones([2, 5, 3])).shape
        TensorShape([2, 5, 8])
    """

    def __init__(
        self,
        width: int,
        layers: int,
        kernel_size: int = 2,
        dropout: float = 0.0,
        weight_dropout: float = 0.0,
        normalization: str | None = "weight",
        **kwargs,
    ):
        super().__init__(width, layers, dropout, **kwargs)
        require_positive_integer("kernel_size", kernel_size)
        self.kernel_size = kernel_size
        self.weight_dropout = float(weight_dropout)
        self.normalization = normalization
        self.recurrent = self._linear(4 * width, "recurrent", normalization=normalization)
        self.injection = self._linear(
            4 * width, "injection", normalization=normalization, use_bias=True
        )
        self.hidden_dropout = self._locked_dropout("hidden_dropout")
        self.kernel_dropout = keras.layers.Dropout(
            self.weight_dropout, dtype=self.dtype_policy, name="kernel_dropout"
        )

    def build(self, x_shape):
        super().build(x_shape)
        self.recurrent.build((None, None, self.kernel_size * self.width))
        self.injection.build((None, None, self.kernel_size * self.features))

    def _memory_spec(self):
        before, below = self.kernel_size - 1, range(self.depth - 1)
        return {
            "c": [self._place(self.width) for _ in below],
            "h": [self._place(before, self.width) for _ in below],
            "input": self._place(before, self._known_features()),
        }

    def _advance(self, x, memory, training):
        batch, length, _ = ops.shape(x)
        memory = self.initial_memory(batch) if memory is None else memory
        joined_x = ops.concatenate([memory["input"], x], axis=1)
        injected = self.injection(causal_windows(joined_x, self.kernel_size))
        recur = self._recurrence(batch, training)
        # Below the first layer, h and c are zero, before the segment and in it.
        nothing = ops.zeros((batch, self.kernel_size - 1 + length, self.width), self.compute_dtype)
        h = nothing[:, self.kernel_size - 1 :]
        c = ops.cast(h, self._exact)
        h_before = [nothing[:, : self.kernel_size - 1], *memory["h"]]
        c_before = [nothing[:, 0], *memory["c"]]
        after = {"c": [], "h": [], "input": joined_x[:, length:]}
        for layer in range(self.depth):
            joined_h = ops.concatenate([h_before[layer], h], axis=1)
            first = ops.cast(c_before[layer], self._exact)[:, None]
            joined_c = ops.concatenate([first, c], axis=1)
            if layer:
                after["h"].append(joined_h[:, length:])
                after["c"].append(ops.cast(joined_c[:, -1], self.compute_dtype))
            h, c = self._gated(recur(joined_h) + injected, joined_c[:, :-1])
        return h, after

    def _recurrence(self, batch, training):
        """Returns a function from h to its part of the gates, with the same masks in all layers."""
        kernel = ops.convert_to_tensor(self.recurrent.kernel)
        kernel = self.kernel_dropout(kernel, training=training)
        kept = self.hidden_dropout(
            ops.ones((batch, 1, self.width), self.compute_dtype), training=training
        )
        dropped = training and self.dropout

        def recur(joined):
            windows = causal_windows(joined * kept if dropped else joined, self.kernel_size)
            return ops.matmul(windows, kernel)

        return recur

    def _gated(self, gates, c):
        """Returns h' and c', [B, T, d] each, from c one position earlier."""
        i, o, g, f = ops.split(ops.cast(gates, self._exact), 4, axis=-1)
        c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
        return ops.cast(ops.sigmoid(o) * ops.tanh(c), self.compute_dtype), c

    @property
    def _exact(self) -> str:
        """The dtype of c, which grows with the layers: half precision would lose the last terms."""
        return "float64" if self.compute_dtype == "float64" else "float32"

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "weight_dropout": self.weight_dropout,
            "normalization": self.normalization,
        }
