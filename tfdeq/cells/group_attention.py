"""A cell whose places attend to those of the same row, column or box of a grid."""

import math
from collections.abc import Sequence

import keras
from keras import ops

from tfdeq.cells.linear import checked_scale, linear, norm
from tfdeq.solvers.solver import require_positive_integer

_HIDDEN = -3e4  # a logit whose weight is 0, also in half precision
KINDS = ("row", "column", "box")


@keras.saving.register_keras_serializable(package="tfdeq")
class GroupAttention(keras.layers.Layer):
    """f(z, x) = a + MLP(norm(a)) with a = x + Attention(norm(z) W + x U), within groups of places.

    The heads are divided among the kinds of groups. In an n × n grid, heads of the first kind attend to the
    row of a place, those of the second to its column, and those of the third to its box of √n × √n places.
    There are no position embeddings: the cell treats all rows, columns, boxes and places within them alike,
    as the rules of Sudoku do. The queries and keys of the heads are normalised, which bounds the logits of
    attention. The input x takes the place of z in a residual block, and also enters queries, keys and
    values; see `TransformerCell`. Norms are root-mean-square norms without gains; linear maps have no biases.

    x U does not depend on z, so `inject` computes it once per solve.

    Args:
        width: d, size of the state at every place, divisible by heads.
        heads: attention heads, divisible by the kinds of groups.
        kinds: kinds of groups, from "row", "column" and "box". Default: all three.
        feedforward: hidden size of the MLP (GELU). Default: 4 · width.
        recurrent_scale: scale of W at the start, >= 0. Default 1.

    Call arguments: z [B, n, n, d]; x from `inject`; mask: [B, n, n] bool or None: places where it is
    False are kept at zero, and no place sees them. Returns the same as z.

    Raises:
        ValueError: for sizes below 1, a width or a number of heads that is not divisible, other kinds,
            or boxes in a grid that has none.

    Source: Vaswani et al., arXiv:1706.03762, section 3; normalised queries and keys: Henry et al.,
        arXiv:2010.04245.

    Example:
        >>> from tfdeq import DEQLayer
        >>> layer = DEQLayer(GroupAttention(12, heads=3), solver="fixed_point_iteration")
        >>> layer(keras.ops.ones([2, 9, 9, 12])).shape
        TensorShape([2, 9, 9, 12])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kinds: Sequence[str] = KINDS,
        feedforward: int | None = None,
        recurrent_scale: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.width = width
        self.heads = heads
        self.kinds = tuple(kinds)
        self.feedforward = 4 * width if feedforward is None else feedforward
        self.recurrent_scale = checked_scale("recurrent_scale", recurrent_scale)
        for name in ("width", "heads", "feedforward"):
            require_positive_integer(name, getattr(self, name))
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds must be some of {', '.join(KINDS)}; received {kinds!r}.")
        if width % heads or heads % len(self.kinds):
            raise ValueError(
                "heads must divide width, and the kinds of groups divide heads; received width "
                f"{width}, heads {heads}, kinds {', '.join(self.kinds)}."
            )
        self.query_key_value = linear(
            3 * width, self.recurrent_scale, name="query_key_value", dtype=self.dtype_policy
        )
        self.injection = linear(3 * width, name="injection", dtype=self.dtype_policy)
        self.attention_output = linear(width, 0.5, name="attention_output", dtype=self.dtype_policy)
        self.expand = linear(self.feedforward, name="expand", dtype=self.dtype_policy)
        self.contract = linear(width, 0.5, name="contract", dtype=self.dtype_policy)

    def build(self, input_shape):
        # A scale of the logits per head: without it, normalised vectors cannot attend to a single
        # place among many.
        self.sharpness = self.add_weight(
            name="sharpness",
            shape=(self.heads,),
            initializer=keras.initializers.Constant(-0.5 * math.log(self.width // self.heads)),
        )
        super().build(input_shape)

    def inject(self, x):
        """Returns the terms of the input x [B, n, n, d] that are the same in every application.

        skip: the input. query_key_value: x U [B, n, n, 3d].
        """
        if len(x.shape) != 4 or x.shape[1] != x.shape[2]:
            raise ValueError(f"x must be [batch, n, n, {self.width}]; received {tuple(x.shape)}.")
        if "box" in self.kinds and (
            x.shape[1] is None or math.isqrt(x.shape[1]) ** 2 != x.shape[1]
        ):
            raise ValueError(
                f"Boxes are √n × √n places of n × n, and n must be known; received {tuple(x.shape)}."
            )
        return {"skip": x, "query_key_value": self.injection(x)}

    def initial_state(self, x):
        """Returns zeros like the input."""
        return ops.zeros_like(x)

    def call(self, z, x, mask=None):
        projected = self.query_key_value(norm(z)) + x["query_key_value"]
        a = x["skip"] + self.attention_output(self._attended(projected, mask))
        hidden = ops.gelu(self.expand(norm(a)), approximate=True)
        output = a + self.contract(hidden)
        return output if mask is None else ops.where(mask[..., None], output, 0)

    def _attended(self, projected, mask):
        """[B, n, n, 3d] -> [B, n, n, d]."""
        shape, each = ops.shape(projected)[:3], self.heads // len(self.kinds)
        split = ops.reshape(projected, (*shape, 3, self.heads, self.width // self.heads))
        found = []
        for place, kind in enumerate(self.kinds):
            own = slice(place * each, (place + 1) * each)
            query, key, value = ops.unstack(_grouped(split[..., own, :], kind), axis=3)
            query = norm(query) * ops.exp(self.sharpness[own])[:, None]
            seen = None if mask is None else _grouped(mask, kind)
            attended = _attention(query, norm(key), value, seen)
            found.append(_grouped(attended, kind))  # for each kind, grouping is its own inverse
        return ops.reshape(ops.concatenate(found, axis=3), (*shape, self.width))

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "heads": self.heads,
            "kinds": self.kinds,
            "feedforward": self.feedforward,
            "recurrent_scale": self.recurrent_scale,
        }


def _attention(query, key, value, seen):
    """Attention within groups; the arguments and the result are [B, G, n, heads, d / heads].

    seen: [B, G, n] bool, the places that others see; None: all.
    """
    query, key, value = (ops.transpose(part, (0, 1, 3, 2, 4)) for part in (query, key, value))
    logits = ops.matmul(query, ops.transpose(key, (0, 1, 2, 4, 3)))
    if seen is not None:
        logits = ops.where(seen[:, :, None, None, :], logits, _HIDDEN)
    weights = ops.softmax(logits, axis=-1)
    return ops.transpose(ops.matmul(weights, value), (0, 1, 3, 2, 4))


def _grouped(x, kind: str):
    """Rearranges [B, n, n, …] as [B, groups, places of a group, …]."""
    if kind == "row":
        return x
    if kind == "column":
        return ops.swapaxes(x, 1, 2)
    shape, side = ops.shape(x), math.isqrt(x.shape[1])
    x = ops.reshape(x, (shape[0], side, side, side, side, *shape[3:]))
    return ops.reshape(ops.swapaxes(x, 2, 3), shape)
