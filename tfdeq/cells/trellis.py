"""A weight-tied TrellisNet layer: a causal convolution with the gates of an LSTM."""

import keras
from keras import ops

from tfdeq.cells.normalized_dense import normalized_dense
from tfdeq.solvers.solver import require_positive_integer

_HISTORY = ("c", "h", "input")  # what a segment needs from the one before it
_LEVELS_OF_AN_UNKNOWN_LENGTH = 20  # doublings: enough for 2^20 positions


@keras.saving.register_keras_serializable(package="tfdeq")
class TrellisCell(keras.layers.Layer):
    """f(h, x)_t = σ(o_t) tanh(c_t) with c_t = σ(f_t) c_{t−1} + σ(i_t) tanh(g_t).

    The gates come from a causal convolution, here of kernel size k = 2, over the state and the input:
    (i, o, g, f)_t = h_{t−1} W_1 + h_t W_2 + x_{t−1} U_1 + x_t U_2 + b. Before the first position, h, c
    and x are zero, or come from a history; see `inject`.

    The state is only h. TrellisNet's layers pass on (h, c), where c_{t−1} comes from the layer below.
    At the equilibrium all layers agree, so c obeys the recurrence above, which is linear in c for given
    gates. Each application solves it exactly, in log2 T doublings. The equilibria are the same as with
    the state (h, c). But c does not need one application per position to travel, the solver needs half
    the memory, and the state is the layer's output.

    W starts as N(0, 1 / fan_in) times recurrent_scale. With W = 0, the default, the first equilibrium is
    f(0, x) itself: training starts from a cell that needs no solve. `jacobian_penalty` keeps equilibria
    easy to find as W grows. U starts as N(0, 1 / fan_in), b as zero. x U + b does not depend on h, so
    `inject` computes it once per solve.

    Args:
        width: d, size of h and c per position.
        kernel_size: k >= 1, number of positions that a gate sees, ending with its own. Default 2.
        dropout: rate for the h that enters the convolution, in [0, 1): one mask per sample, the same at
            all positions and in all applications (variational dropout). Default 0.
        weight_dropout: rate for the entries of W, in [0, 1): one mask for the batch, the same in all
            applications (DropConnect). Default 0.
        recurrent_scale: scale of W at the start, >= 0. Default 0.
        normalization: of W and U. None, "weight" (lengths and directions of their columns are learned
            separately, as in the source) or "spectral" (spectral norms of at most 1); see
            `tfdeq.cells.normalized_dense`. Neither makes the cell a contraction. Default None.

    Call arguments: z [B, T, d], that is h; x from `inject`; mask [B, T] bool or None: positions where
    it is False, which must follow the text, are kept at zero. Returns [B, T, d]. In half precision the
    gates are applied and c is summed in float32. If T is unknown when a graph is traced, 20 doublings
    are made, which suffice for 2^20 positions.

    Raises:
        ValueError: for settings out of range; for an input that is not [B, T, n], or a history that
            is not what `remember` returns.

    Source: Bai, Kolter, Koltun, Trellis Networks for Sequence Modeling, arXiv:1810.06682; as an
        equilibrium: Bai, Kolter, Koltun, arXiv:1909.01377, section 4; the doublings: Hillis, Steele,
        Data Parallel Algorithms, 1986; variational dropout: Gal, Ghahramani, arXiv:1512.05287;
        weight dropout: Merity, Keskar, Socher, arXiv:1708.02182, section 2.

    Example:
        >>> from tfdeq import DEQLayer
        >>> layer = DEQLayer(TrellisCell(width=8))
        >>> x = keras.ops.ones([2, 5, 3])
        >>> h = layer(x)
        >>> h.shape
        TensorShape([2, 5, 8])
        >>> past = layer.cell.remember(h, layer.cell.inject(x))
        >>> layer({"input": x, "past": past}).shape
        TensorShape([2, 5, 8])
    """

    def __init__(
        self,
        width: int,
        kernel_size: int = 2,
        dropout: float = 0.0,
        weight_dropout: float = 0.0,
        recurrent_scale: float = 0.0,
        normalization: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.width = width
        self.kernel_size = kernel_size
        for name in ("width", "kernel_size"):
            require_positive_integer(name, getattr(self, name))
        self.dropout = _rate("dropout", dropout)
        self.weight_dropout = _rate("weight_dropout", weight_dropout)
        self.recurrent_scale = float(recurrent_scale)
        if not 0.0 <= self.recurrent_scale < float("inf"):
            raise ValueError(
                f"recurrent_scale must be a finite number >= 0; received {recurrent_scale!r}."
            )
        self.normalization = normalization
        self.recurrent = self._linear("recurrent", self.recurrent_scale, use_bias=False)
        self.injection = self._linear("injection", 1.0, use_bias=True)
        self.hidden_dropout = keras.layers.SpatialDropout1D(
            self.dropout, dtype=self.dtype_policy, name="hidden_dropout"
        )
        self.kernel_dropout = keras.layers.Dropout(
            self.weight_dropout, dtype=self.dtype_policy, name="kernel_dropout"
        )

    def build(self, z_shape):
        # Weight dropout reads the kernel without calling its layer, so the layer is built here.
        if not self.recurrent.built:
            self.recurrent.build((None, None, self.kernel_size * self.width))

    def inject(self, x):
        """Returns the terms of the input that are the same in every application.

        Args:
            x: [B, T, n]; or, to continue after an earlier segment, a dict: input [B, T, n]; past: what
                `remember` returned for that segment; if padding follows the examples, also lengths [B]
                int32, 0 … T, the number of positions in each, for `remember` (the mask is passed
                separately). Gradients also reach the past: for truncated backpropagation pass it
                through `keras.ops.stop_gradient`.

        Returns:
            A dict. gates: x U + b [B, T, 4d]. For the positions before the first: h [B, k − 1, d] and c
            [B, d]. For `remember`: input [B, k − 1, n], that of the segment's last positions, and
            lengths, if given.
        """
        past = lengths = None
        if isinstance(x, dict):
            x, past, lengths = self._checked_segment(x)
        if len(x.shape) != 3:
            raise ValueError(
                f"x must be [batch, positions, features]; received shape {tuple(x.shape)}."
            )
        x = ops.cast(x, self.compute_dtype)
        if past is None:
            past = self.initial_past(x)
        past = {name: ops.cast(past[name], self.compute_dtype) for name in _HISTORY}
        joined = ops.concatenate([past["input"], x], axis=1)
        return {
            "gates": self.injection(self._windows(joined)),
            "h": past["h"],
            "c": past["c"],
            "input": _last(joined, self.kernel_size - 1, lengths),
            **({} if lengths is None else {"lengths": lengths}),
        }

    def initial_state(self, x):
        """Returns zeros [B, T, d] for an input of `inject`."""
        x = x["input"] if isinstance(x, dict) else x
        return _zeros(x, (1, 1, self.width))

    def remember(self, z, x):
        """Returns what the next segment needs from a solved one, computed without dropout.

        Args:
            z: [B, T, d], the equilibria, without padding unless the segment has lengths. x: the result
                of `inject` for its input.

        Returns:
            A dict for each example's last positions: h [B, k − 1, d]; c [B, d]; input [B, k − 1, n].
        """
        z, lengths = ops.cast(z, self.compute_dtype), x.get("lengths")
        _, c = self._gated(z, x, training=False)
        c = ops.concatenate([x["c"][:, None], ops.cast(c, self.compute_dtype)], axis=1)
        h = ops.concatenate([x["h"], z], axis=1)
        return {
            "c": _last(c, 1, lengths)[:, 0],
            "h": _last(h, self.kernel_size - 1, lengths),
            "input": x["input"],
        }

    def call(self, z, x, training=None, mask=None):
        if isinstance(mask, dict):  # Keras passes the masks of a segment in a dict
            mask = mask["input"]
        output, _ = self._gated(z, x, training)
        output = ops.cast(output, self.compute_dtype)
        return output if mask is None else ops.where(mask[:, :, None], output, 0)

    def _gated(self, z, x, training):
        """Returns f(h, x) and c, [B, T, d] each."""
        h = self.hidden_dropout(ops.concatenate([x["h"], z], axis=1), training=training)
        gates = self._recur(self._windows(h), training) + x["gates"]
        # c is a sum over all positions so far; half precision would lose the last terms.
        exact = "float64" if self.compute_dtype == "float64" else "float32"
        i, o, g, f = ops.split(ops.cast(gates, exact), 4, axis=-1)
        fresh = ops.sigmoid(i) * ops.tanh(g)
        c = _recurrence(ops.sigmoid(f), fresh, ops.cast(x["c"], exact))
        return ops.sigmoid(o) * ops.tanh(c), c

    def _recur(self, windows, training):
        if not (training and self.weight_dropout):
            return self.recurrent(windows)
        kernel = ops.convert_to_tensor(self.recurrent.kernel)
        return ops.matmul(windows, self.kernel_dropout(kernel, training=training))

    def _windows(self, joined):
        """[B, k − 1 + T, n] -> [B, T, k n]: each position with the k − 1 before it, the oldest first."""
        last = self.kernel_size - 1
        taps = [joined[:, tap : tap - last or None] for tap in range(self.kernel_size)]
        return ops.concatenate(taps, axis=-1)

    def initial_past(self, x):
        """Returns the past of segments at the beginning of a text: zeros, for an input [B, T, n]."""
        x = ops.cast(x, self.compute_dtype)
        before = self.kernel_size - 1
        return {
            "c": _zeros(x[:, 0], (1, self.width)),
            "h": _zeros(x[:, :1], (1, before, self.width)),
            "input": _zeros(x[:, :1], (1, before, x.shape[2])),
        }

    def _checked_segment(self, x):
        """Returns the input, the past and the lengths (or None) from a dict."""
        if {*x} - {"lengths"} != {"input", "past"} or sorted(x["past"]) != sorted(_HISTORY):
            names = {key: sorted(w) if isinstance(w, dict) else "tensor" for key, w in x.items()}
            raise ValueError(
                "x must be a tensor, or a dict of input and past (and lengths, or not), where past is "
                f"what remember(z, x) returned: a dict of c, h and input; received {names}."
            )
        return x["input"], x["past"], x.get("lengths")

    def _linear(self, name: str, scale: float, use_bias: bool) -> keras.layers.Layer:
        initializer = "zeros"
        if scale:
            initializer = keras.initializers.VarianceScaling(
                scale**2, "fan_in", "untruncated_normal"
            )
        return normalized_dense(
            4 * self.width,
            self.normalization,
            use_bias=use_bias,
            kernel_initializer=initializer,
            dtype=self.dtype_policy,
            name=name,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "kernel_size": self.kernel_size,
            "dropout": self.dropout,
            "weight_dropout": self.weight_dropout,
            "recurrent_scale": self.recurrent_scale,
            "normalization": self.normalization,
        }


def _recurrence(forget, fresh, first):
    """Returns c_t = forget_t c_{t−1} + fresh_t for t = 1 … T, where c_0 = first.

    Each position is combined with the one 1, 2, 4, … positions before it. After level l, c_t is the sum
    and product_t the factor over the last 2^l positions.

    Args:
        forget, fresh: [B, T, d]. first: [B, d].

    Returns:
        c [B, T, d].
    """
    length = forget.shape[1]
    levels = _LEVELS_OF_AN_UNKNOWN_LENGTH if length is None else (length - 1).bit_length()
    c, product = fresh, forget
    for level in range(levels):
        c = c + product * _later(c, 2**level, fill=0.0)
        product = product * _later(product, 2**level, fill=1.0)
    return c + product * first[:, None]


def _later(values, steps, fill):
    """Moves values [B, T, d] to later positions, possibly by more than T."""
    return ops.concatenate(
        [ops.full_like(values[:, :steps], fill), values[:, :-steps]],
        axis=1,
    )


def _last(joined, count, lengths):
    """Returns the last positions [B, count, n] of segments [B, T, n] with their own lengths, or T.

    Args:
        joined: [B, count + T, n]: the segment after the `count` positions before it.
    """
    if lengths is None:
        return joined[:, ops.shape(joined)[1] - count :]
    places = ops.cast(lengths, "int32")[:, None] + ops.arange(count)
    return ops.take_along_axis(joined, places[:, :, None], axis=1)


def _zeros(like, tiles):
    """Returns zeros whose sizes are the tensor's leading ones (possibly unknown) times those of tiles."""
    return ops.tile(ops.zeros_like(like[..., :1]), tiles)


def _rate(name: str, rate: float) -> float:
    if not 0.0 <= float(rate) < 1.0:
        raise ValueError(f"{name} must be in [0, 1); received {rate!r}.")
    return float(rate)
