"""A Keras layer around a cell z ← cell(z, x): its shapes, dtypes, masks and start."""

from typing import Any

import keras
import tensorflow as tf

from tfdeq.cell_calls.functional_cell import UnknownSizeError
from tfdeq.cell_calls.masks import attach_masks
from tfdeq.cell_calls.pure_cell import PureCell, require_two_inputs
from tfdeq.solution import Solution


class CellLayer(keras.layers.Layer):
    """The part of `DEQLayer` that handles its cell: shapes, dtypes, masks and start, without the solve.

    Args:
        cell: see `DEQLayer`.

    Raises:
        ValueError: at construction if `cell` is not a cell; at build for a cell whose output is unlike
            z.
    """

    def __init__(self, cell: keras.layers.Layer, **kwargs: Any):
        super().__init__(**kwargs)
        _require_cell(cell)
        self.cell = cell
        self._pure_cell = PureCell(cell, self.compute_dtype)
        self._x_dtypes = None
        self.supports_masking = True

    def __call__(self, x, *args, **kwargs):
        if not self.built:
            # build() receives shapes only; the cell may need to know which inputs are integers.
            self._x_dtypes = keras.tree.map_structure(_dtype_name, x)
        return super().__call__(x, *args, **kwargs)

    def build(self, x_shape):
        dtypes = self._x_dtypes
        if dtypes is None:
            dtypes = keras.tree.map_shape_structure(lambda _: "float32", x_shape)
        shapes: list[tuple] = []
        keras.tree.map_shape_structure(shapes.append, x_shape)
        specs = [
            keras.KerasTensor(shape, dtype=self._input_dtype(dtype))
            for shape, dtype in zip(shapes, keras.tree.flatten(dtypes), strict=True)
        ]
        x = keras.tree.pack_sequence_as(dtypes, specs)
        z = self._pure_cell.state_spec(x)
        self._pure_cell.note_shapes(x, z)
        try:
            z, output = self._pure_cell.output_spec(z, x)
        except Exception as error:
            raise ValueError(
                f"The cell {self.cell.name!r} of {self.name!r} could not be applied to a state z of "
                f"{_text(z)} and an input x of {_text(x)}. Give the cell a call(z, x) that accepts "
                "these, or an initial_state(x) that returns a state of the right shape. "
                f"The cell said: {error}"
            ) from error
        if not _alike(output, z):
            raise ValueError(
                f"The cell {self.cell.name!r} of {self.name!r} must return the structure and shape of "
                f"its state z: {_text(z)}; it returned {_text(output)} for an input x of {_text(x)}. "
                "Change the cell's last layer, or give the cell an initial_state(x) that returns a "
                "state like its output."
            )

    def initial_state(self, x: Any) -> Any:
        """Returns the start of the solve for the input x: the cell's initial_state, or zeros."""
        return self._pure_cell.start(x)

    def compute_output_spec(self, x, z0=None, **kwargs):
        def like_state():
            return keras.tree.map_structure(
                lambda leaf: keras.KerasTensor(leaf.shape, dtype=dtype), state
            )

        state = self._pure_cell.state_spec(x, z0)
        dtype = self.compute_dtype
        if not kwargs.get("return_solution"):
            return like_state()
        dtype = keras.tree.flatten(state)[0].dtype
        batch = keras.tree.flatten(state)[0].shape[0]
        counts = [keras.KerasTensor((batch,), dtype=d) for d in ("float32", "int32", "int32")]
        states = [like_state() for _ in kwargs.get("iterates") or ()] or ()
        trace = ()
        if kwargs.get("trace"):
            trace = keras.KerasTensor((batch, None), dtype="float32")
        return Solution(like_state(), *counts, states, trace)

    def compute_output_shape(self, x_shape):
        """Returns the state's shape, or nest of shapes, for the shape or shapes of x."""
        dtypes = keras.tree.flatten(self._x_dtypes)
        shapes: list[tuple] = []
        keras.tree.map_shape_structure(shapes.append, x_shape)
        if self._x_dtypes is None or len(dtypes) != len(shapes):
            dtypes = ["float32"] * len(shapes)
        specs = iter(
            [
                keras.KerasTensor(shape, dtype=self._input_dtype(dtype))
                for shape, dtype in zip(shapes, dtypes, strict=True)
            ]
        )
        x = keras.tree.map_shape_structure(lambda _: next(specs), x_shape)
        return keras.tree.map_structure(
            lambda leaf: tuple(leaf.shape), self._pure_cell.state_spec(x)
        )

    def compute_mask(self, x, previous_mask=None):
        """Returns the masks of the equilibrium's leaves, for x's mask or nest of masks; None for no mask.

        In a call they apply to the leaves on which the cell's layers have set no mask. If the cell
        defines compute_mask(z, previous_mask), that determines them. Otherwise a state that starts as
        zeros like x has x's masks, and any other state has x's mask on the leaves that have x's length.
        """
        if all(mask is None for mask in keras.tree.flatten(previous_mask)):
            return None
        symbolic = all(isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten(x))
        if self._pure_cell.computes_masks and not symbolic:
            return None  # The cell's own compute_mask was used in its call.
        state = self._pure_cell.state_spec(x)
        if self._pure_cell.computes_masks:
            return self.cell.compute_mask(state, previous_mask)
        masks = self._pure_cell.carried_masks(previous_mask, keras.tree.flatten(state))
        return keras.tree.pack_sequence_as(state, masks)

    def get_build_config(self):
        return {**(super().get_build_config() or {}), "x_dtypes": self._x_dtypes}

    def build_from_config(self, config):
        self._x_dtypes = config.get("x_dtypes")
        super().build_from_config(config)

    def _usual_start(self, x: Any, z0: Any) -> Any:
        """Returns the start for x; with a z0, its spec is enough if x does not determine the sizes."""
        try:
            return self._pure_cell.start(x)
        except UnknownSizeError:
            if z0 is None:
                raise
            return self._pure_cell.state_spec(x, z0)

    def _given_start(self, z0: Any, usual: Any) -> Any:
        """Returns the caller's z0 as a state; raises an error unless it is like the usual start."""
        usual = self._pure_cell.declared_state(usual)
        received, expected = keras.tree.flatten(z0), keras.tree.flatten(usual)
        fits = len(received) == len(expected) and all(
            tf.TensorShape(one.shape).is_compatible_with(other.shape)
            for one, other in zip(received, expected, strict=True)
        )
        if not fits:
            raise ValueError(
                f"z0 must be like the state of {self.name!r}, {_text(usual)}; received {_text(z0)}."
            )
        return self._pure_cell.as_state(z0)

    def _as_output(self, z: Any, masks: Any) -> Any:
        z = tf.nest.map_structure(lambda leaf: tf.cast(leaf, self.compute_dtype), z)
        return attach_masks(z, masks)

    def _input_dtype(self, dtype: str) -> str:
        return self.compute_dtype if "float" in dtype else dtype


def _require_cell(cell: Any) -> None:
    if not isinstance(cell, keras.layers.Layer):
        raise ValueError(f"cell must be a Keras layer or model with call(z, x); received {cell!r}.")
    if isinstance(cell, keras.Sequential):
        raise ValueError(
            f"cell must have two inputs, z and x; received the Sequential {cell.name!r}, which has "
            "one. Use a functional model keras.Model([z, x], output), or a layer with call(z, x)."
        )
    require_two_inputs(cell)


def _dtype_name(leaf: Any) -> str:
    return keras.backend.standardize_dtype(getattr(leaf, "dtype", "float32"))


def _alike(one: Any, other: Any) -> bool:
    """Whether nests of symbolic tensors have the same number of leaves, with compatible shapes."""
    shapes = [
        [tf.TensorShape(leaf.shape) for leaf in keras.tree.flatten(spec)] for spec in (one, other)
    ]
    if len(shapes[0]) != len(shapes[1]):
        return False
    return all(left.is_compatible_with(right) for left, right in zip(*shapes, strict=True))


def _text(spec: Any) -> str:
    return ", ".join(f"{tuple(leaf.shape)} {leaf.dtype}" for leaf in keras.tree.flatten(spec))
