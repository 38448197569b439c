"""A learned bias of attention by head and distance, which also hides positions."""

import keras
from keras import ops

_MASKED = -1e9  # attention logit of a position that must not be seen


@keras.saving.register_keras_serializable(package="tfdeq")
class DistanceBias(keras.layers.Layer):
    """A bias for attention logits that depends on the head and the distance between positions.

    It has one learned number per head and distance, and −10⁹ for distances outside 0 … reach − 1. The
    numbers start as −slope · distance, where the slopes of the heads are a geometric sequence from 1/2
    to 1/256.

    Args:
        reach: number of visible distances, 0 … reach − 1.
        heads: attention heads.
        slope: factor of the initial slopes; 0: no distance is preferred. Default 1.

    Call arguments: distance [...] integers; lowest: the smallest visible distance. Default 0. Returns
    [..., heads].

    Source: Press, Smith, Lewis, arXiv:2108.12409, for the initial values.

    Example:
        >>> DistanceBias(reach=4, heads=2)(keras.ops.array([0, 1, 4])).shape
        TensorShape([3, 2])
    """

    def __init__(self, reach: int, heads: int, slope: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.reach = reach
        self.heads = heads
        self.slope = float(slope)
        self.table = keras.layers.Embedding(
            reach, heads, self._initial, dtype=self.dtype_policy, name="table"
        )
        self.table.build()
        self.built = True

    def call(self, distance, lowest=0):
        distance = ops.convert_to_tensor(distance, dtype="int32")
        bias = self.table(ops.clip(distance, 0, self.reach - 1))
        seen = (distance >= lowest) & (distance < self.reach)
        return ops.where(seen[..., None], bias, ops.cast(_MASKED, bias.dtype))

    def causal(self, length, before=0):
        """Returns the bias between `length` positions and the `before` earlier ones together with themselves.

        Args:
            length: T. before: P, number of places before the first of the T positions.

        Returns:
            [1, heads, T, P + T].
        """
        position = ops.arange(length)
        distance = before + position[:, None] - ops.arange(before + length)[None, :]
        return ops.transpose(self(distance), (2, 0, 1))[None]

    def _initial(self, shape, dtype=None):
        """[reach, heads]: −slope · 2^−(1 + 8 h / heads) · distance for head h = 0, 1, …."""
        slopes = self.slope * 2.0 ** -(
            1.0 + 8.0 * ops.arange(self.heads, dtype="float32") / shape[1]
        )
        values = -ops.arange(shape[0], dtype="float32")[:, None] * slopes[None, :]
        return ops.cast(values, dtype or "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "reach": self.reach,
            "heads": self.heads,
            "slope": self.slope,
        }


def hidden_where(empty, bias):
    """Hides the empty places [B, N] in a bias [1, heads, T, N]; returns [B, heads, T, N]."""
    return ops.where(empty[:, None, None, :], ops.cast(_MASKED, bias.dtype), bias)
