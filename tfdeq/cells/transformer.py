"""A weight-tied causal Transformer block whose input takes the place of the skip connection."""

import keras
from keras import ops

from tfdeq.solvers.solver import require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
class TransformerCell(keras.layers.Layer):
    """f(z, x) = a + MLP(norm(a)) with a = x + Attention(norm(z) W + x U).

    Pre-norm, and without a direct path from z to f(z): the input x stands where a residual block
    has z, and enters the queries, keys and values too (x U). That, with `jacobian_penalty`, is what
    makes long training steady. Attention is causal: position t depends on positions up to t. The
    linear maps have no biases; their weights start as N(0, 1 / fan_in).

    x U does not depend on z, so `inject` computes it once a solve.

    Args:
        width: d, size of the state per position, divisible by heads.
        heads: attention heads.
        feedforward: hidden size of the MLP (GELU). Default: 4 · width.
        dropout: rate on the attention's and the MLP's output, in [0, 1). Default 0.

    Call arguments: z and x of shape [B, T, d] (x as it comes from `inject`). Returns [B, T, d].

    Raises:
        ValueError: for sizes below 1 or a width that heads do not divide.

    Source: Vaswani et al., arXiv:1706.03762, section 3; injection into queries, keys and values: Bai,
        Kolter, Koltun, arXiv:1909.01377, section 3.2 (weight-tied Transformer).

    Example:
        >>> from tfdeq import DEQLayer
        >>> layer = DEQLayer(TransformerCell(width=8, heads=2))
        >>> layer(keras.ops.ones([2, 5, 8])).shape
        TensorShape([2, 5, 8])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int | None = None,
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        require_positive_integer("width", width)
        require_positive_integer("heads", heads)
        self.width = width
        self.heads = heads
        self.feedforward = 4 * width if feedforward is None else feedforward
        require_positive_integer("feedforward", self.feedforward)
        self.dropout = float(dropout)
        if width % heads:
            raise ValueError(f"heads must divide width; received width {width}, heads {heads}.")
        self.state_norm = keras.layers.RMSNormalization(name="state_norm")
        self.query_key_value = _linear(3 * width, "query_key_value")
        self.injection = _linear(3 * width, "injection")
        self.attention_output = _linear(width, "attention_output")
        self.attention_norm = keras.layers.RMSNormalization(name="attention_norm")
        self.expand = _linear(self.feedforward, "expand", activation="gelu")
        self.contract = _linear(width, "contract")
        self.attention_dropout = keras.layers.Dropout(dropout, name="attention_dropout")
        self.feedforward_dropout = keras.layers.Dropout(dropout, name="feedforward_dropout")

    def inject(self, x):
        """Returns what of the input stays the same in every application: x [B, T, d], x U [B, T, 3d]."""
        return {"skip": x, "query_key_value": self.injection(x)}

    def initial_state(self, x):
        """Returns zeros [B, T, d]."""
        return ops.zeros_like(x)

    def call(self, z, x):
        batch, length = ops.shape(z)[0], ops.shape(z)[1]
        projected = self.query_key_value(self.state_norm(z)) + x["query_key_value"]
        projected = ops.reshape(projected, (batch, length, 3, self.heads, self.width // self.heads))
        query, key, value = (projected[:, :, index] for index in range(3))
        attended = ops.dot_product_attention(query, key, value, is_causal=True)
        attended = self.attention_output(ops.reshape(attended, (batch, length, self.width)))
        a = x["skip"] + self.attention_dropout(attended)
        return a + self.feedforward_dropout(self.contract(self.expand(self.attention_norm(a))))

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "heads": self.heads,
            "feedforward": self.feedforward,
            "dropout": self.dropout,
        }


def _linear(units: int, name: str, activation: str | None = None) -> keras.layers.Dense:
    initializer = keras.initializers.VarianceScaling(1.0, "fan_in", "untruncated_normal")
    return keras.layers.Dense(
        units, activation, use_bias=False, kernel_initializer=initializer, name=name
    )
