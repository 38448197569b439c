"""A weight-tied causal Transformer block whose input takes the place of the skip connection."""

import keras
from keras import ops

from tfdeq.cells.attended_past import attend_with_past, empty_past, joined_past
from tfdeq.cells.distance_bias import DistanceBias, hidden_where
from tfdeq.cells.linear import linear, norm
from tfdeq.solvers.solver import require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
class TransformerCell(keras.layers.Layer):
    """f(z, x) = a + MLP(norm(a)) with a = x + Attention(norm(z) W + x U).

    There is no direct path from z to f(z): the input x takes the place of z in a residual block, and
    also enters the queries, keys and values (x U). Together with `jacobian_penalty` this keeps long
    training stable. Attention is causal, and represents distances by a learned bias per head and
    distance; see `DistanceBias`. The norms are root-mean-square norms without gains, and the linear
    maps have no biases. Weights start as N(0, 1 / fan_in), and W as recurrent_scale times that. With W
    = 0, the default, the first equilibrium is f(0, x) itself: training starts from a cell that needs no
    solve, and the dependence on z grows only if it helps. The formula above is pre-norm; post-norm is
    f(z, x) = norm(a + MLP(a)) with a = norm(x + Attention(z W + x U)).

    x U and the bias do not depend on z, so `inject` computes them once per solve.

    Attention is causal, so the equilibrium of a position does not change when others follow it.
    `remember` stores what later positions need of solved ones, so these can be solved alone, one by one
    or in segments; see `inject`. With a span, a long text has the same equilibria in segments as in one
    piece.

    Args:
        width: d, size of the state per position, divisible by heads.
        heads: attention heads.
        sequence_length: the longest T, if there is no span. If T is unknown when a graph is traced, a
            longer T cannot be refused; attention then sees only this many positions.
        feedforward: hidden size of the MLP (GELU). Default: 4 · width.
        dropout: rate on the attention's and the MLP's output, in [0, 1); one mask for the whole solve.
            Default 0.
        recurrent_scale: scale of W at the start, >= 0. Default 0.
        normalization: of all linear maps: None, "weight" (lengths and directions of their columns are
            learned separately) or "spectral" (spectral norms of at most 1, kept by a Keras constraint);
            see `tfdeq.cells.normalized_dense`. Neither makes the cell a contraction: attention has no
            Lipschitz constant. Default None.
        span: number of positions that attention sees, including its own. T is then unlimited, and
            segments store the span − 1 positions before them. Default: all T positions.
        norm: "pre" or "post". Default "pre".
        distance_slope: see `DistanceBias`; 0 if far positions matter as much as near ones. Default 1.
        locked_dropout: whether the dropout masks are the same at all positions (variational dropout).
            Default False.
        query_key_norm: whether each head's queries and keys are normalised. The logits of attention,
            without the bias of the distance, are then within ± sqrt(d / heads), even if W and U are
            large, which keeps training with large learning rates stable. Default False.

    Call arguments: z [B, T, d]; x from `inject`; mask [B, T] bool or None: positions where it is False
    are kept at zero, and so do not contribute to residuals. Returns [B, T, d].

    Raises:
        ValueError: for sizes below 1, a width that is not divisible by heads, another norm, or a T
            beyond sequence_length.

    Source: Vaswani et al., arXiv:1706.03762, section 3; injection into queries, keys and values: Bai,
        Kolter, Koltun, arXiv:1909.01377, section 3.2; carried memory: Dai et al., Transformer-XL,
        arXiv:1901.02860, section 3.2; one dropout mask: Gal, Ghahramani, arXiv:1512.05287; normalised
        queries and keys: Henry et al., arXiv:2010.04245.

    Example:
        >>> from tfdeq import DEQLayer
        >>> layer = DEQLayer(TransformerCell(width=8, heads=2, sequence_length=5))
        >>> layer(keras.ops.ones([2, 5, 8])).shape
        TensorShape([2, 5, 8])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        sequence_length: int,
        feedforward: int | None = None,
        dropout: float = 0.0,
        recurrent_scale: float = 0.0,
        normalization: str | None = None,
        span: int | None = None,
        norm: str = "pre",
        distance_slope: float = 1.0,
        locked_dropout: bool = False,
        query_key_norm: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.width = width
        self.heads = heads
        self.sequence_length = sequence_length
        self.feedforward = 4 * width if feedforward is None else feedforward
        for name in ("width", "heads", "sequence_length", "feedforward"):
            require_positive_integer(name, getattr(self, name))
        if width % heads:
            raise ValueError(f"heads must divide width; received width {width}, heads {heads}.")
        self.dropout = float(dropout)
        self.recurrent_scale = float(recurrent_scale)
        if not self.recurrent_scale >= 0:
            raise ValueError(f"recurrent_scale must be >= 0; received {recurrent_scale!r}.")
        self.normalization = normalization
        self.span = span
        if span is not None:
            require_positive_integer("span", span)
        if norm not in ("pre", "post"):
            raise ValueError(f'norm must be "pre" or "post"; received {norm!r}.')
        self.norm = norm
        self.locked_dropout = bool(locked_dropout)
        self.query_key_norm = bool(query_key_norm)
        self.query_key_value = self._linear(3 * width, "query_key_value", self.recurrent_scale)
        self.injection = self._linear(3 * width, "injection")
        self.attention_output = self._linear(width, "attention_output")
        self.expand = self._linear(self.feedforward, "expand")
        self.contract = self._linear(width, "contract")
        self.attention_dropout = self._dropout("attention_dropout")
        self.feedforward_dropout = self._dropout("feedforward_dropout")
        self.distance_bias = DistanceBias(
            span or sequence_length,
            heads,
            distance_slope,
            dtype=self.dtype_policy,
            name="distance_bias",
        )

    def inject(self, x):
        """Returns the terms of the input that are the same in every application.

        Args:
            x: [B, T, d]; or, to solve positions after earlier ones, a dict of input and past. For a
                segment: input [B, T, d], and past as returned by `initial_past` or `remember`; if
                padding follows the examples, also lengths [B] int32, 0 … T, the number of positions in
                each, for `remember` (the mask is passed separately). For one further position of each
                example, with a state [B, d]: input [B, d]; position [B] int32, its index; past: a dict
                of key and value [B, heads, P, d / heads], where place p of an example holds what
                `remember` returned for its position p. Places at or after an example's position are
                ignored.

        Returns:
            skip: the input. query_key_value: x U [B, T, 3d]. bias: [1, heads, T, T], added to the
            attention's logits: the learned bias of the distance, which also hides positions. For a
            segment also past and lengths, and bias [B, heads, T, P + T]. For one further position, all
            without T: query_key_value [B, 3d], past, and bias [1, heads, 1] of the position itself and
            past_bias [B, heads, P].
        """
        if isinstance(x, dict):
            return self._inject_next(**x) if "position" in x else self._inject_segment(**x)
        length = x.shape[1]
        if self.span is None and length is not None and length > self.sequence_length:
            raise ValueError(
                f"x must be at most {self.sequence_length} long, the cell's sequence_length; "
                f"received shape {tuple(x.shape)}. Cut the sequences into windows, or give the cell a "
                "span."
            )
        return {
            "skip": x,
            "query_key_value": self.injection(x),
            "bias": self.distance_bias.causal(ops.shape(x)[1]),
        }

    def _inject_segment(self, input, past, lengths=None):
        """Returns the result of `inject` for a segment [B, T, d] with a past."""
        places = past["key"].shape[2]
        bias = self.distance_bias.causal(ops.shape(input)[1], before=places)
        # The newest positions are last. If an example has fewer earlier positions, the first places
        # are empty.
        empty = ops.arange(places)[None, :] < places - past["length"][:, None]
        empty = ops.pad(empty, [[0, 0], [0, ops.shape(input)[1]]], constant_values=False)
        return {
            "skip": input,
            "query_key_value": self.injection(input),
            "bias": hidden_where(empty, bias),
            "past": past,
            **({} if lengths is None else {"lengths": lengths}),
        }

    def _inject_next(self, input, position, past):
        """Returns the result of `inject` for one position per sample, [B, d], with a past."""
        distance = position[:, None] - ops.arange(past["key"].shape[2])[None, :]
        past_bias = self.distance_bias(distance, lowest=1)  # [B, P, heads]
        own = self.distance_bias(ops.zeros((1,), "int32"))
        return {
            "skip": input,
            "query_key_value": self.injection(input),
            "bias": ops.reshape(own, (1, self.heads, 1)),
            "past": past,
            "past_bias": ops.transpose(past_bias, (0, 2, 1)),
        }

    def initial_past(self, x):
        """Returns the past of segments at the beginning of a text: zeros.

        Args:
            x: [B, T, d], an input.

        Returns:
            A dict. key, value: [B, heads, span − 1, d / heads]. length: [B] int32, how many places are
            filled, counted from the end.

        Raises:
            ValueError: for a cell without a span.
        """
        if self.span is None:
            raise ValueError(
                "Only a cell with a span has a memory of fixed size; this one sees the whole text of "
                f"at most sequence_length={self.sequence_length} positions. Give it a span."
            )
        like = ops.cast(x[:, 0, 0], self.compute_dtype)
        return empty_past(like, self.span - 1, self.heads, self.width // self.heads)

    def initial_state(self, x):
        """Returns zeros like the input, [B, T, d] or [B, d]."""
        return ops.zeros_like(x["input"] if isinstance(x, dict) else x)

    def remember(self, z, x):
        """Returns what later positions see of equilibria, to be stored as their past.

        Args:
            z: [B, T, d] or [B, d], the equilibria. x: the result of `inject` for their input.

        Returns:
            A dict of key and value: [B, heads, T, d / heads], or without T. For a segment with a past:
            the past of the next segment. If the segment has lengths, that is the past after the last
            position of each example.
        """
        _, key, value = self._project(z, x)
        if "past_bias" in x:
            return {"key": key, "value": value}
        own = {
            "key": ops.transpose(key, (0, 2, 1, 3)),
            "value": ops.transpose(value, (0, 2, 1, 3)),
        }
        if "past" not in x:
            return own
        return joined_past(x["past"], own, self.span - 1, x.get("lengths"))

    def call(self, z, x, mask=None):
        if isinstance(mask, dict):  # Keras passes the masks of a segment in a dict
            mask = mask["input"]
        query, key, value = self._project(z, x)
        if "past_bias" in x:
            attended = attend_with_past(query, key, value, x["past"], x["past_bias"], x["bias"])
        else:
            if "past" in x:
                key, value = (
                    ops.concatenate([ops.transpose(x["past"][name], (0, 2, 1, 3)), own], axis=1)
                    for name, own in (("key", key), ("value", value))
                )
            attended = ops.dot_product_attention(query, key, value, bias=x["bias"])
        attended = self.attention_output(_merge_heads(attended, self.width))
        a = x["skip"] + self.attention_dropout(attended)
        if self.norm == "post":
            a = norm(a)
        hidden = ops.gelu(self.expand(a if self.norm == "post" else norm(a)), approximate=True)
        output = a + self.feedforward_dropout(self.contract(hidden))
        if self.norm == "post":
            output = norm(output)
        return output if mask is None else ops.where(mask[:, :, None], output, 0)

    def _project(self, z, x):
        """Returns queries, keys and values, [B, T, heads, d / heads] each, or without T."""
        z = z if self.norm == "post" else norm(z)
        projected = self.query_key_value(z) + x["query_key_value"]
        split = (3, self.heads, self.width // self.heads)
        # For one position only the batch size is unknown, so no operation on shapes is needed.
        batch = (-1,) if "past_bias" in x else ops.shape(z)[:2]
        query, key, value = ops.unstack(ops.reshape(projected, (*batch, *split)), axis=-3)
        if self.query_key_norm:
            query, key = norm(query), norm(key)
        return query, key, value

    def _linear(self, units: int, name: str, scale: float = 1.0) -> keras.layers.Layer:
        return linear(
            units, scale, normalization=self.normalization, name=name, dtype=self.dtype_policy
        )

    def _dropout(self, name: str) -> keras.layers.Dropout:
        noise_shape = (None, 1, None) if self.locked_dropout else None
        return keras.layers.Dropout(
            self.dropout, noise_shape=noise_shape, dtype=self.dtype_policy, name=name
        )

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "heads": self.heads,
            "sequence_length": self.sequence_length,
            "feedforward": self.feedforward,
            "dropout": self.dropout,
            "recurrent_scale": self.recurrent_scale,
            "normalization": self.normalization,
            "span": self.span,
            "norm": self.norm,
            "distance_slope": self.distance_bias.slope,
            "locked_dropout": self.locked_dropout,
            "query_key_norm": self.query_key_norm,
        }


def _merge_heads(attended, width):
    """[B, T, heads, d / heads] or [B, heads, d / heads] -> [B, T, d] or [B, d]."""
    if len(attended.shape) == 3:
        return ops.reshape(attended, (-1, width))
    return ops.reshape(attended, (*ops.shape(attended)[:2], width))
