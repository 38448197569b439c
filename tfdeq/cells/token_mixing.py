"""A cell that mixes places by a matrix: an MLP over the places, then one over the features."""

import keras
from keras import ops

from tfdeq.cells.linear import checked_scale, linear, norm
from tfdeq.solvers.solver import require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
class TokenMixing(keras.layers.Layer):
    """f(z, x) = a + MLP(norm(a)) with a = x + M' gelu(M norm(z) + N x); M, N and M' act on the places.

    Use it for inputs of a fixed size in which every place may depend on every other one by position, as
    on a board. With few places it is cheaper than attention. The input x takes the place of z in a
    residual block, and is also mixed in, so every application sees it. Norms are root-mean-square norms
    without gains; linear maps have no biases.

    N x does not depend on z, so `inject` computes it once per solve.

    Args:
        width: d, size of the state at every place.
        places: number of places: the product of the sizes between batch and features.
        mixed: hidden size of the MLP over the places (GELU). Default: 2 · places.
        feedforward: hidden size of the MLP over the features (GELU). Default: 4 · width.
        recurrent_scale: scale of M at the start, >= 0. Default 1.

    Call arguments: z [B, …, d]; x from `inject`. Returns the same as z.

    Raises:
        ValueError: for sizes below 1, or an input with another number of places.

    Source: Tolstikhin et al., MLP-Mixer, arXiv:2105.01601, section 2; for puzzles on a board:
        Jolicoeur-Martineau, Less is More, arXiv:2510.04871, section 4.5.

    Example:
        >>> from tfdeq import DEQLayer
        >>> layer = DEQLayer(TokenMixing(8, places=12), solver="fixed_point_iteration")
        >>> layer(keras.ops.ones([2, 3, 4, 8])).shape
        TensorShape([2, 3, 4, 8])
    """

    def __init__(
        self,
        width: int,
        places: int,
        mixed: int | None = None,
        feedforward: int | None = None,
        recurrent_scale: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.width = width
        self.places = places
        self.mixed = 2 * places if mixed is None else mixed
        self.feedforward = 4 * width if feedforward is None else feedforward
        self.recurrent_scale = checked_scale("recurrent_scale", recurrent_scale)
        for name in ("width", "places", "mixed", "feedforward"):
            require_positive_integer(name, getattr(self, name))
        self.recurrent = linear(
            self.mixed, self.recurrent_scale, name="recurrent", dtype=self.dtype_policy
        )
        self.injection = linear(self.mixed, name="injection", dtype=self.dtype_policy)
        self.unmix = linear(places, 0.5, name="unmix", dtype=self.dtype_policy)
        self.expand = linear(self.feedforward, name="expand", dtype=self.dtype_policy)
        self.contract = linear(width, 0.5, name="contract", dtype=self.dtype_policy)

    def inject(self, x):
        """Returns the terms of the input x [B, …, d] that are the same in every application.

        skip: the input. mixed: N x [B, d, mixed].
        """
        shape = x.shape[1:-1]
        if None in shape or _product(shape) != self.places:
            raise ValueError(
                f"A cell of {self.places} places takes [batch, places, {self.width}], in one or more "
                f"dimensions; received shape {tuple(x.shape)}."
            )
        return {"skip": x, "mixed": self.injection(self._by_feature(x))}

    def initial_state(self, x):
        """Returns zeros like the input."""
        return ops.zeros_like(x)

    def call(self, z, x):
        mixed = ops.gelu(self.recurrent(self._by_feature(norm(z))) + x["mixed"], approximate=True)
        unmixed = ops.swapaxes(self.unmix(mixed), 1, 2)
        a = x["skip"] + ops.reshape(unmixed, ops.shape(x["skip"]))
        hidden = ops.gelu(self.expand(norm(a)), approximate=True)
        return a + self.contract(hidden)

    def _by_feature(self, x):
        """[B, …, d] -> [B, d, places]."""
        return ops.swapaxes(ops.reshape(x, (-1, self.places, self.width)), 1, 2)

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "places": self.places,
            "mixed": self.mixed,
            "feedforward": self.feedforward,
            "recurrent_scale": self.recurrent_scale,
        }


def _product(sizes) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
