"""A convolutional cell that sees its input in every application."""

import keras
from keras import ops

from tfdeq.cells.linear import checked_scale, linear, norm
from tfdeq.solvers.solver import require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
class RecallConvolution(keras.layers.Layer):
    """f(z, x) = x + D gelu(C norm(z) + U x + b), where C and U read the neighbours of each place.

    An answer may depend on distant places. Each application carries information one place further, and
    the equilibrium is reached when it has arrived everywhere. So a cell that was trained on small
    inputs can solve larger ones with more evaluations. The input x takes the place of z in a residual
    block, and also enters the inner sum (recall), so every application sees the input, even in a long
    solve. The norm is a root-mean-square norm of each place without gains. It bounds C norm(z), and
    therefore the state.

    Neighbours are read as shifted copies and one matrix product, which XLA runs well on CPUs; places
    beyond the border are zeros. U x + b does not depend on z, so `inject` computes it once per solve.

    Args:
        width: d, size of the state at every place.
        rank: dimensions of the places, 1 or 2. With 1 a place sees itself and the two beside it, with 2
            itself and the four beside it. Default 2.
        hidden: size of the hidden layer (GELU). Default: 2 · width.
        recurrent_scale: scale of C at the start, >= 0: its entries start as N(0, 1 / fan_in) times it.
            Default 1.

    Call arguments: z [B, places, d]; x from `inject`; places is [T] or [H, W], of any size. mask: [B,
    places] bool or None: places where it is False are kept at zero, like those beyond the border; the
    input must be zero there too. Returns the same as z.

    Raises:
        ValueError: for sizes below 1, another rank, or an input of another rank.

    Source: recall: Bansal et al., End-to-end Algorithm Synthesis with Recurrent Networks,
        arXiv:2202.05826, section 3.1.

    Example:
        >>> from tfdeq import DEQLayer
        >>> layer = DEQLayer(RecallConvolution(8, rank=1), solver="fixed_point_iteration")
        >>> layer(keras.ops.ones([2, 5, 8])).shape
        TensorShape([2, 5, 8])
    """

    def __init__(
        self,
        width: int,
        rank: int = 2,
        hidden: int | None = None,
        recurrent_scale: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.width = width
        self.rank = rank
        self.hidden = 2 * width if hidden is None else hidden
        self.recurrent_scale = checked_scale("recurrent_scale", recurrent_scale)
        require_positive_integer("width", width)
        require_positive_integer("hidden", self.hidden)
        if rank not in (1, 2):
            raise ValueError(f"rank must be 1 or 2; received {rank!r}.")
        self.recurrent = linear(
            self.hidden, self.recurrent_scale, name="recurrent", dtype=self.dtype_policy
        )
        self.injection = linear(
            self.hidden, name="injection", dtype=self.dtype_policy, use_bias=True
        )
        self.contract = linear(width, 0.5, name="contract", dtype=self.dtype_policy)

    @property
    def reach(self) -> int:
        """How many places away one application sees, along each dimension."""
        return 1

    def inject(self, x):
        """Returns the terms of the input x [B, places, d] that are the same in every application.

        skip: the input. hidden: U x + b [B, places, hidden].
        """
        if len(x.shape) != self.rank + 2:
            raise ValueError(
                f"A cell of rank {self.rank} takes [batch, {'places' if self.rank == 1 else 'rows, columns'}"
                f", {self.width}]; received shape {tuple(x.shape)}."
            )
        return {"skip": x, "hidden": self.injection(_with_neighbours(x))}

    def initial_state(self, x):
        """Returns zeros like the input."""
        return ops.zeros_like(x)

    def call(self, z, x, mask=None):
        seen = _with_neighbours(norm(z))
        hidden = ops.gelu(self.recurrent(seen) + x["hidden"], approximate=True)
        output = x["skip"] + self.contract(hidden)
        return output if mask is None else ops.where(mask[..., None], output, 0)

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "rank": self.rank,
            "hidden": self.hidden,
            "recurrent_scale": self.recurrent_scale,
        }


def _with_neighbours(x):
    """[B, T, d] -> [B, T, 3d], or [B, H, W, d] -> [B, H, W, 5d]: each place and its neighbours."""
    copies = [x]
    for axis in range(1, len(x.shape) - 1):
        copies += [_shifted(x, axis, 1), _shifted(x, axis, -1)]
    return ops.concatenate(copies, axis=-1)


def _shifted(x, axis: int, by: int):
    """Returns x moved by one place along an axis, with zeros at the free end."""
    kept, padding = [slice(None)] * len(x.shape), [[0, 0] for _ in x.shape]
    kept[axis] = slice(None, -1) if by > 0 else slice(1, None)
    padding[axis] = [1, 0] if by > 0 else [0, 1]
    return ops.pad(x[tuple(kept)], padding)
