"""`MultiscaleCell`: an equilibrium of images at several resolutions at once."""

from collections.abc import Sequence

import keras
from keras import ops

from tfdeq.cells.linear import checked_scale
from tfdeq.cells.multiscale.fusion import Fusion
from tfdeq.cells.multiscale.residual_block import ResidualBlock, group_norm
from tfdeq.solvers.solver import require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
class MultiscaleCell(keras.layers.Layer):
    """A residual block at each of several resolutions, and a fusion of all of them (MDEQ).

    The state is a list of one tensor for each branch. The first branch has the input's rows and columns,
    each further one half those of the one before, rounded up. An application is

        y_i = n₃(relu(z_i + n₂(C₂ relu(n₁(C₁ z_i)) + x_i))),    x_1 = x, x_i = 0 else
        f_i = n(C relu(Σ_j path from y_j to y_i))

    with group norms n; see `ResidualBlock` and `Fusion` beside this class. With one branch there is no
    fusion: the cell is a weight-tied residual block. The state is bounded by its norms, but nothing
    makes the cell a contraction: with random weights, solves of the published form do not converge.

    With skip="input" the sum in y_i adds x_i in the place of z_i, and every branch has one: x_i is made of
    x_(i−1) by a convolution of stride 2 and a group norm, once a solve. Then z_i acts through C₁ and C₂
    alone, whose weight in the sum starts at `recurrent_scale`; with 0 the first equilibrium is one
    application, and training with `jacobian_penalty` makes it deeper.

    On CPUs XLA's convolutions are slow: leave jit_compile off there.

    Args:
        channels: c_i of each branch, from the highest resolution to the lowest.
        expansion: factor on the channels inside a residual block. Default 5.
        groups: of the group norms, at least 1; it must divide every c_i. Default 8.
        dropout: rate in the residual blocks, in [0, 1): one mask for a whole solve. Default 0.
        weight_normalization: whether the filters of blocks and mixing have lengths and directions that are
            learned separately. Default True.
        skip: "state", the published form, or "input". Default "state".
        recurrent_scale: what the gains of n₂ start at, >= 0. Default 1.

    Call arguments: z: list of [B, ⌈H / 2^i⌉, ⌈W / 2^i⌉, c_i]; x as it comes from `inject`, for images
    [B, H, W, c_0], for example after a convolution. Returns the same as z.

    Raises:
        ValueError: for settings out of range, or an input of other channels.

    Source: Bai, Koltun, Kolter, Multiscale Deep Equilibrium Models, arXiv:2006.08656, section 3.

    Example:
        >>> from tfdeq import DEQLayer
        >>> layer = DEQLayer(MultiscaleCell([8, 16]), solver="anderson")
        >>> [branch.shape for branch in layer(keras.ops.ones([2, 7, 6, 8]))]
        [TensorShape([2, 7, 6, 8]), TensorShape([2, 4, 3, 16])]
    """

    def __init__(
        self,
        channels: Sequence[int],
        expansion: int = 5,
        groups: int = 8,
        dropout: float = 0.0,
        weight_normalization: bool = True,
        skip: str = "state",
        recurrent_scale: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.channels = list(channels)
        self.expansion = expansion
        self.groups = groups
        self.dropout = float(dropout)
        self.weight_normalization = bool(weight_normalization)
        self.skip = skip
        self.recurrent_scale = checked_scale("recurrent_scale", recurrent_scale)
        self._check()
        settings = {"weight_normalization": weight_normalization, "dtype": self.dtype_policy}
        of_blocks = {"skip": skip, "recurrent_scale": self.recurrent_scale, **settings}
        self.blocks = [
            ResidualBlock(size, expansion, groups, self.dropout, name=f"block_{place}", **of_blocks)
            for place, size in enumerate(self.channels)
        ]
        further = self.channels[1:] if skip == "input" else []
        policy = self.dtype_policy
        self.halving = [
            keras.layers.Conv2D(
                size, 3, 2, padding="same", use_bias=False, dtype=policy, name=f"halve_{place}"
            )
            for place, size in enumerate(further)
        ]
        self.halving_norms = [
            group_norm(groups, dtype=policy, name=f"halve_{place}_norm")
            for place in range(len(further))
        ]
        self.fusion = None
        if len(self.channels) > 1:
            self.fusion = Fusion(self.channels, groups, name="fusion", **settings)

    def _check(self) -> None:
        require_positive_integer("expansion", self.expansion)
        require_positive_integer("groups", self.groups)
        if not self.channels:
            raise ValueError("channels must have one entry for each branch; received none.")
        for size in self.channels:
            require_positive_integer("channels", size)
            if size % self.groups:
                raise ValueError(
                    f"groups must divide the channels of every branch; received groups={self.groups} and "
                    f"channels={self.channels}."
                )
        if self.skip not in ("state", "input"):
            raise ValueError(f"skip must be 'state' or 'input'; received {self.skip!r}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1); received {self.dropout!r}.")

    def initial_state(self, x):
        """Returns zeros for each branch, for the input x [B, H, W, c_0].

        Raises:
            ValueError: for an input of another shape.
        """
        if len(x.shape) != 4 or x.shape[-1] != self.channels[0]:
            raise ValueError(
                f"MultiscaleCell takes [batch, rows, columns, {self.channels[0]}], with as many channels as "
                f"its first branch has; received shape {tuple(x.shape)}. Put a "
                f"keras.layers.Conv2D({self.channels[0]}, 3, padding='same') before it."
            )
        batch, *size = (
            ops.shape(x)[axis] if x.shape[axis] is None else x.shape[axis] for axis in range(3)
        )
        states = []
        for channels in self.channels:
            states.append(ops.zeros((batch, *size, channels), dtype=self.compute_dtype))
            size = [(part + 1) // 2 for part in size]
        return states

    def inject(self, x):
        """Returns the x_i of the branches that have one, for the images x [B, H, W, c_0]."""
        found = [x]
        for halve, norm in zip(self.halving, self.halving_norms, strict=True):
            found.append(norm(halve(found[-1])))
        return found

    def call(self, z, x, training=None):
        injected = [*x, *[None] * (len(z) - len(x))]
        states = [
            block(state, injection, training=training)
            for block, state, injection in zip(self.blocks, z, injected, strict=True)
        ]
        return states if self.fusion is None else self.fusion(states)

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "expansion": self.expansion,
            "groups": self.groups,
            "dropout": self.dropout,
            "weight_normalization": self.weight_normalization,
            "skip": self.skip,
            "recurrent_scale": self.recurrent_scale,
        }
