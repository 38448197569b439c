"""Two cells as one: an equilibrium of an equilibrium is an equilibrium."""

from typing import Any

import keras
from keras import ops

from tfdeq.cell_calls.masks import attach_masks, masks_of
from tfdeq.cell_calls.pure_cell import PureCell


@keras.saving.register_keras_serializable(package="tfdeq")
class StackedCell(keras.layers.Layer):
    """f((z_a, z_b), x) = (a(z_a, x), b(z_b, z_a)); see `stacked`.

    Args:
        a, b: as for `stacked`.

    Call arguments: z: the pair of a's and b's states; x from `inject`; mask: the mask of x. b's input
    has the mask that a's state carries (see `DEQLayer.compute_mask`). Returns a pair like z.
    """

    def __init__(self, a: keras.layers.Layer, b: keras.layers.Layer, **kwargs: Any):
        # Each cell casts its inputs itself.
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        for name, cell in (("a", a), ("b", b)):
            if not isinstance(cell, keras.layers.Layer) or isinstance(cell, keras.Sequential):
                raise ValueError(
                    f"{name} must be a Keras layer with call(z, x), or a functional model of [z, x]; "
                    f"received {cell!r}."
                )
        if a is b:
            raise ValueError(
                f"a and b must be two cells; received {a.name!r} twice. Make another like it with "
                "type(cell).from_config(cell.get_config())."
            )
        self.a, self.b = a, b
        self._pure_a = PureCell(a, self.compute_dtype)
        self._pure_b = PureCell(b, self.compute_dtype)

    def inject(self, x: Any) -> Any:
        """Returns a's injection of the input x; b's input changes with every evaluation."""
        return self._pure_a.inject(x)

    def initial_state(self, x: Any) -> tuple[Any, Any]:
        """Returns a's initial state for x, and b's initial state for a's."""
        start = self._pure_a.start(x)
        return start, self._pure_b.start(start)

    def call(self, z, x, training=None, mask=None):
        z_a, z_b = z
        input_of_b = z_a
        if self.b.autocast:
            # Calls b.inject as a DEQLayer around b would, in b's compute dtype.
            input_of_b = keras.tree.map_structure(
                lambda leaf: ops.cast(leaf, self.b.compute_dtype), z_a
            )
            input_of_b = attach_masks(input_of_b, masks_of(z_a))
        return (
            self._pure_a.apply(z_a, x, training=training, mask=mask),
            self._pure_b.apply(
                z_b,
                self._pure_b.inject(input_of_b),
                training=training,
                mask=self._mask_of_b(z_a, mask),
            ),
        )

    def _mask_of_b(self, z_a: Any, mask: Any) -> Any:
        """Returns the mask of a's state, b's input: the state's own mask, or that of a's input if it fits."""
        own = masks_of(z_a)
        if all(one is None for one in own):
            own = self._pure_a.carried_masks(mask, keras.tree.flatten(z_a))
        if all(one is None for one in own):
            return None
        return keras.tree.pack_sequence_as(z_a, list(own))

    def get_config(self):
        return {
            **super().get_config(),
            "a": _serialised(self.a),
            "b": _serialised(self.b),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        cells = [keras.saving.deserialize_keras_object(config.pop(name)) for name in ("a", "b")]
        return cls(*cells, **config)


def _serialised(cell: keras.layers.Layer) -> dict[str, Any]:
    config = keras.saving.serialize_keras_object(cell)
    # The layer around the pair builds both by calling them, because the first argument's shape is
    # not enough.
    config.pop("build_config", None)
    return config


def stacked(a: keras.layers.Layer, b: keras.layers.Layer, **kwargs: Any) -> StackedCell:
    """One cell whose equilibrium is that of cell b, applied to that of cell a.

    f((z_a, z_b), x) = (a(z_a, x), b(z_b, z_a)), whose fixed points are the pairs with z_a = a(z_a, x)
    and z_b = b(z_b, z_a): the equilibria of a for x, and of b for z_a. So `DEQLayer(stacked(a, b))(x)`
    is the pair of `DEQLayer(a)(x)` and `DEQLayer(b)` applied to it, with the same gradients, from one
    solve. The Jacobian is block triangular: its eigenvalues are those of a and of b, so plain iteration
    converges if it does for both. In the joint solve, b starts with a z_a that has not converged yet.
    The residual is that of the pair, so use a smaller tolerance if z_b is much smaller than z_a.

    For three cells: stacked(stacked(a, b), c), where c's input is the pair of a's and b's states; or
    stacked(a, stacked(b, c)), where c's input is only b's state, as in an ordinary stack.

    Args:
        a: a cell as for `DEQLayer`, with inject and initial_state if it has them.
        b: a cell whose input is the state of a. Its inject is evaluated in every application, because
            a's state changes; its initial_state receives a's initial state.
        **kwargs: name and dtype of the cell; a and b compute in their own dtypes.

    Returns:
        The cell, for `DEQLayer`; its state is the pair of a's and b's states, which may be nests.

    Raises:
        ValueError: if an argument is not a cell, or if both are the same cell.

    Source: Bai, Kolter, Koltun, Deep Equilibrium Models, arXiv:1909.01377, section 3 and appendix
        (universality of single-layer DEQs).

    Example:
        >>> from tfdeq import DEQLayer
        >>> from tfdeq.cells import DenseCell
        >>> layer = DEQLayer(stacked(DenseCell(4), DenseCell(3)))
        >>> z_a, z_b = layer(keras.ops.ones([2, 5]))
        >>> z_a.shape, z_b.shape
        (TensorShape([2, 4]), TensorShape([2, 3]))
    """
    return StackedCell(a, b, **kwargs)
