"""The residual block of a multiscale cell."""

import keras
from keras import layers, ops

from tfdeq.cells.multiscale.normalized_convolution import NormalizedConvolution


@keras.saving.register_keras_serializable(package="tfdeq")
class ResidualBlock(layers.Layer):
    """n₃(relu(z + n₂(C₂ relu(n₁(C₁ z)) + x))), or n₃(relu(x + n₂(C₂ relu(n₁(C₁ z))))).

    n are group norms and C convolutions of 3 × 3; C₁ leads from c to `expansion` · c channels, C₂ back. The
    first form is the published one. In the second no path leads from z to the output but through C₁ and C₂.

    Args:
        channels: c.
        expansion: default 5.
        groups: of the norms; it must divide c. Default 8.
        dropout: rate of the dropout on the output of C₂, in [0, 1). Default 0.
        weight_normalization: whether the lengths and directions of the filters are learned separately.
            Default True.
        skip: "state": the first form. "input": the second. Default "state".
        recurrent_scale: what the gains of n₂ start at. Default 1.

    Call arguments: z [B, H, W, c]; injection: x, like z, or None for none. Returns the same as z.

    Source: Bai, Koltun, Kolter, Multiscale Deep Equilibrium Models, arXiv:2006.08656, section 3.2 and
        figure 2.

    Example:
        >>> ResidualBlock(8)(keras.ops.ones([1, 5, 5, 8])).shape
        TensorShape([1, 5, 5, 8])
    """

    def __init__(
        self,
        channels: int,
        expansion: int = 5,
        groups: int = 8,
        dropout: float = 0.0,
        weight_normalization: bool = True,
        skip: str = "state",
        recurrent_scale: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.skip, self.recurrent_scale = skip, recurrent_scale
        self.channels = channels
        self.expansion = expansion
        self.groups = groups
        self.rate = dropout
        self.weight_normalization = weight_normalization
        policy = self.dtype_policy
        self.expand = convolution(
            expansion * channels, 3, weight_normalization, dtype=policy, name="expand"
        )
        self.contract = convolution(
            channels, 3, weight_normalization, dtype=policy, name="contract"
        )
        self.norms = [
            group_norm(groups, gain=gain, dtype=policy, name=f"norm_{number}")
            for number, gain in ((1, 1.0), (2, recurrent_scale), (3, 1.0))
        ]
        self.dropout = layers.Dropout(dropout, dtype=policy, name="dropout") if dropout else None

    def call(self, z, injection=None, training=None):
        inner, outer, last = self.norms
        change = self.contract(ops.relu(inner(self.expand(z))))
        if self.dropout is not None:
            change = self.dropout(change, training=training)
        if self.skip == "input":
            return last(ops.relu(injection + outer(change)))
        if injection is not None:
            change = change + injection
        return last(ops.relu(z + outer(change)))

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "expansion": self.expansion,
            "groups": self.groups,
            "dropout": self.rate,
            "weight_normalization": self.weight_normalization,
            "skip": self.skip,
            "recurrent_scale": self.recurrent_scale,
        }


def convolution(
    channels: int, kernel_size: int, weight_normalization: bool, **settings
) -> layers.Layer:
    """Returns a convolution without bias, with zeros beyond the border.

    settings: dtype and name.
    """
    if weight_normalization:
        return NormalizedConvolution(channels, kernel_size, **settings)
    return layers.Conv2D(channels, kernel_size, padding="same", use_bias=False, **settings)


def group_norm(groups: int, affine: bool = True, gain: float = 1.0, **settings) -> layers.Layer:
    """Returns a group norm; if it is affine with gains, which start at `gain`, and shifts.

    settings: dtype and name.
    """
    return layers.GroupNormalization(
        groups,
        epsilon=1e-5,
        center=affine,
        scale=affine,
        gamma_initializer=keras.initializers.Constant(gain),
        **settings,
    )
