"""A cell that updates a latent state several times, and then an answer, with one inner cell."""

import keras
from keras import ops

from tfdeq.cells.linear import norm
from tfdeq.solvers.solver import require_positive_integer


@keras.saving.register_keras_serializable(package="tfdeq")
class NestedRecursion(keras.layers.Layer):
    """f([y, l], x): l ← g(l, x + norm(y)) n times, then y ← g(y, norm(l)).

    y is the answer and l a latent state, both [B, places, d]; the cell g is used for both. The state is the
    concatenation of the two, [B, places, 2d], and a model reads only y. The norms (root mean square) keep
    the state bounded if g has a residual connection.

    Args:
        cell: g, on states [B, places, d] with inputs of the same shape, such as `GroupAttention`.
        inner_steps: n >= 1. Default 6.

    Call arguments: z [B, places, 2d]; x [B, places, d]; mask: passed to g, if it takes one. Returns the
    same as z.

    Attributes:
        width: 2d, the size of the state at a place. input_width: d.

    Raises:
        ValueError: for a cell without a width, or fewer than one inner step.

    Source: Jolicoeur-Martineau, Less is More: Recursive Reasoning with Tiny Networks, arXiv:2510.04871,
        section 4; there, g has residual connections from the state, followed by norms.

    Example:
        >>> from tfdeq import DEQLayer
        >>> from tfdeq.cells import RecallConvolution
        >>> cell = NestedRecursion(RecallConvolution(8, rank=1), inner_steps=2)
        >>> DEQLayer(cell, solver="fixed_point_iteration")(keras.ops.ones([2, 5, 8])).shape
        TensorShape([2, 5, 16])
    """

    def __init__(self, cell: keras.layers.Layer, inner_steps: int = 6, **kwargs):
        super().__init__(**kwargs)
        require_positive_integer("inner_steps", inner_steps)
        if not getattr(cell, "width", None):
            raise ValueError(f"The cell must say its width; received a {type(cell).__name__}.")
        self.cell = cell
        self.inner_steps = inner_steps
        self.input_width = cell.width
        self.width = 2 * cell.width
        self.supports_masking = cell.supports_masking

    @property
    def reach(self) -> int | None:
        """How many places away one application sees; None if the cell has no `reach`."""
        each = getattr(self.cell, "reach", None)
        return None if each is None else each * (self.inner_steps + 1)

    def initial_state(self, x):
        """Returns zeros [B, places, 2d]."""
        return ops.zeros((*ops.shape(x)[:-1], self.width), x.dtype)

    def answer(self, z):
        """Returns y [B, places, d]."""
        return z[..., : self.input_width]

    def call(self, z, x, mask=None):
        given = {} if mask is None else {"mask": mask}
        answer, latent = ops.split(z, 2, axis=-1)
        injected = self._inject(x + norm(answer))
        for _ in range(self.inner_steps):
            latent = self.cell(latent, injected, **given)
        answer = self.cell(answer, self._inject(norm(latent)), **given)
        return ops.concatenate([answer, latent], axis=-1)

    def _inject(self, x):
        return self.cell.inject(x) if hasattr(self.cell, "inject") else x

    def get_config(self):
        cell = keras.saving.serialize_keras_object(self.cell)
        cell.pop("build_config", None)  # the cell is built when it is first called
        return {**super().get_config(), "cell": cell, "inner_steps": self.inner_steps}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("cell")), **config)
