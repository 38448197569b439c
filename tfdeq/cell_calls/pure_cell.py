"""A Keras layer as the cell of a solve: a pure function, its parameters and a start."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdeq.cell_calls import scope_stack
from tfdeq.cell_calls.cell_function import CellFunction, Seen
from tfdeq.cell_calls.functional_cell import (
    UnknownSizeError,
    declared_state,
    is_functional,
    zeros_for,
)
from tfdeq.cell_calls.masks import CellMasks, fits, masks_of


class PureCell:
    """A cell seen as a function f(z, x, theta) without side effects.

    Args:
        cell: see `DEQLayer`.
        compute_dtype: name of the compute dtype of the layer around the cell.

    Attributes:
        cell: the cell.
        exactly: calls a function in which variables are read in their own dtype.
        computes_masks: whether the cell's own compute_mask determines the mask of its output.
    """

    def __init__(self, cell: keras.layers.Layer, compute_dtype: str):
        self.cell = cell
        self._compute_dtype = compute_dtype
        half = compute_dtype in ("float16", "bfloat16")
        self.exactly = _Exactly().do if half else _at_once
        self.computes_masks = not getattr(cell.compute_mask, "_is_default", False)
        self._seen = {True: Seen(), False: Seen()}  # in training, in inference
        self._follows: list[bool] | None = None

    def function(self, training: bool, mask: Any = None, x: Any = ()) -> CellFunction:
        """Returns f(z, x, theta, masks) for one call of the layer.

        mask: the mask of the layer's input; x: the injected input, whose leaves may carry masks.
        """
        return CellFunction(self, training, CellMasks(mask, masks_of(x)), self._seen[training])

    def solve(
        self,
        f: CellFunction,
        z0: Any,
        x: Any,
        solve: Callable[[bool], Any],
        compaction: bool,
    ) -> Any:
        """Returns the result of solve(compaction), with f prepared for the cell's side effects.

        Before the first solve, the cell is traced to find them: noise and statistics need the whole
        batch, and masks that the cell makes are those of z in the next application. If the cell shows
        new side effects during the solve, the solve is repeated.
        """
        seen = f.seen
        if not seen.traced:
            seen.traced = True
            f.trace(z0, x)
        while True:
            f.adopt()
            if (f.masks.leaves() or seen.puts_masks) and not f.masks.z:
                f.find_state_masks(z0, x)
            compaction = compaction and not seen.assigns
            result = solve(compaction)
            unknown_masks = seen.puts_masks and not f.masks.z
            if not (f.adopt() or unknown_masks or (compaction and seen.assigns)):
                return result

    def apply(self, z, x, training=None, mask=None):
        """Calls the cell with the arguments that its kind takes."""
        # Solves inside the cell are part of one evaluation.
        with scope_stack.suspended():
            if is_functional(self.cell):
                inputs = [*keras.tree.flatten(z), *keras.tree.flatten(x)]
                output = self.cell(inputs, training=training)
                same = len(keras.tree.flatten(output)) == len(keras.tree.flatten(z))
                return _packed_like(z, output) if same else output
            extra = {}
            if mask is not None and "mask" in inspect.signature(self.cell.call).parameters:
                extra["mask"] = mask
            return self.cell(z, x, training=training, **extra)

    def inject(self, x: Any) -> Any:
        """Returns what every application receives in place of the layer's input x."""
        if not hasattr(self.cell, "inject"):
            return x
        with keras.name_scope(self.cell.name):
            return self.cell.inject(x)

    def start(self, x: Any) -> Any:
        """Returns the start of the solve for the layer's input x."""
        if hasattr(self.cell, "initial_state"):
            return self.as_state(self.cell.initial_state(x))
        if is_functional(self.cell):
            return self.as_state(zeros_for(self.cell, x))
        return self.as_state(tf.nest.map_structure(tf.zeros_like, x))

    def as_state(self, z: Any) -> Any:
        """Casts to the dtype that the solver works in, at least float32."""
        dtype = tf.float64 if self._compute_dtype == "float64" else tf.float32
        return tf.nest.map_structure(lambda leaf: tf.cast(leaf, dtype), z)

    def state_spec(self, x: Any, z0: Any = None) -> Any:
        """Returns the state's shapes as KerasTensors, by tracing `start`, without computing anything.

        x: tensors, symbolic or not. Sizes that a functional cell does not declare are those of z0;
        without a z0, those that `start` takes from x, or unknown.
        """
        specs = keras.tree.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), x)
        try:
            start = tf.function(self.start, autograph=False).get_concrete_function(specs)
            state = keras.tree.map_structure(
                lambda leaf: keras.KerasTensor(tuple(leaf.shape), dtype=leaf.dtype.name),
                start.structured_outputs,
            )
        except UnknownSizeError:
            dtype = "float64" if self._compute_dtype == "float64" else "float32"
            state = declared_state(self.cell, keras.tree.flatten(x)[0].shape[0], dtype)
        given = keras.tree.flatten(z0)
        if z0 is None or not self._declares_state or len(given) != len(keras.tree.flatten(state)):
            return state
        shapes = iter(given)
        return keras.tree.map_structure(
            lambda leaf: keras.KerasTensor(tuple(next(shapes).shape), dtype=leaf.dtype), state
        )

    @property
    def _declares_state(self) -> bool:
        """Whether the state's shape is that of a functional model's inputs."""
        return is_functional(self.cell) and not hasattr(self.cell, "initial_state")

    def declared_state(self, z: Any) -> Any:
        """Returns the spec that a start z0 must have; sizes that the cell does not declare are those of z."""
        if not self._declares_state:
            return z
        leaves = keras.tree.flatten(z)
        return declared_state(self.cell, leaves[0].shape[0], leaves[0].dtype)

    def note_shapes(self, x: Any, z: Any) -> None:
        """Records which leaves of the state take their second dimension from the symbolic input x.

        These can carry x's mask [B, T]. A leaf whose dimension has another origin, such as a fixed
        number of slots, cannot, even if the sizes happen to agree.
        """
        leaves, inputs = keras.tree.flatten(z), keras.tree.flatten(x)
        seconds = {leaf.shape[1] for leaf in inputs if len(leaf.shape) > 1}
        self._follows = [len(leaf.shape) > 1 and leaf.shape[1] in seconds for leaf in leaves]
        if not any(self._follows) or not hasattr(self.cell, "initial_state"):
            return

        def any_length(leaf):
            shape = (leaf.shape[0], None, *leaf.shape[2:]) if len(leaf.shape) > 1 else leaf.shape
            return keras.KerasTensor(shape, dtype=leaf.dtype)

        try:
            probe = self.state_spec(keras.tree.map_structure(any_length, x))
        except Exception:
            return  # The start needs a known length; carried_masks compares sizes instead.
        self._follows = [
            follows and leaf.shape[1] is None
            for follows, leaf in zip(self._follows, keras.tree.flatten(probe), strict=True)
        ]

    def carried_masks(self, mask: Any, leaves: Sequence[Any]) -> list:
        """Returns the mask, or None, that each leaf of the state carries if the layer passes on x's mask.

        A state that starts as zeros like x has x's masks, leaf by leaf. Any other state has x's single
        mask on the leaves that have x's length. mask: nest like x; leaves: those of the state.
        """
        masks = keras.tree.flatten(mask)
        # For a cell inside another cell nothing was recorded; leaves with more than two dimensions
        # count as sequences.
        follows = self._follows or [len(leaf.shape) > 2 for leaf in leaves]
        if hasattr(self.cell, "initial_state") or is_functional(self.cell):
            known = {id(one): one for one in masks if one is not None}
            masks = list(known.values()) * len(leaves) if len(known) == 1 else []
        if len(masks) != len(leaves):
            return [None] * len(leaves)
        return [
            one if one is not None and follow and fits(leaf, one) else None
            for leaf, one, follow in zip(leaves, masks, follows, strict=True)
        ]

    def output_spec(self, z: Any, x: Any) -> tuple[Any, Any]:
        """Returns the state and the shapes of the cell's output for symbolic z and x; builds the cell.

        The state is z. If z does not fit x and a functional cell has undeclared sizes, it is the state
        that the cell declares, and calls must then pass a z0.
        """
        try:
            return z, self._output_spec(z, x)
        except Exception:
            declared = self.declared_state(z)
            if not self._declares_state or all(
                None not in leaf.shape[1:] for leaf in keras.tree.flatten(declared)
            ):
                raise
            return declared, self._output_spec(declared, x)

    def _output_spec(self, z: Any, x: Any) -> Any:
        leaves = keras.tree.flatten((z, x))
        if all(None not in leaf.shape[1:] for leaf in leaves):
            return self.apply(z, self.inject(x))
        # By tracing, where an unknown size, such as a sequence's length, is a tensor.
        traced = _Traced(lambda z, x: self.apply(z, self.inject(x)))
        try:
            return traced.compute_output_spec(z, x)
        except Exception:
            # The cell's own error is more helpful than Keras's, which is about the tracing.
            if traced.error is None:
                raise
            raise traced.error from None


def require_two_inputs(cell: keras.layers.Layer) -> None:
    """Raises an error for a layer with one input, whose call would misinterpret x.

    Raises:
        ValueError: for such a layer; the message lists the arguments of its call.
    """
    advice = "Use it inside a functional model keras.Model([z, x], output), or in a layer with call(z, x)."
    if is_functional(cell):
        if len(cell.inputs) <= len(cell.outputs):
            raise ValueError(
                "cell must have the inputs z and x, with as many first inputs as outputs for z; received "
                f"the functional model {cell.name!r} of {len(cell.inputs)} inputs and "
                f"{len(cell.outputs)} outputs. Give it a further input x."
            )
        return
    kinds = inspect.Parameter
    parameters = list(inspect.signature(cell.call).parameters.values())
    if any(parameter.kind == kinds.VAR_POSITIONAL for parameter in parameters):
        return
    positional = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in positional]
    if len(names) < 2 or names[1] in ("training", "mask"):
        raise ValueError(
            f"cell must have call(z, x); received the {type(cell).__name__} {cell.name!r}, whose call "
            f"takes ({', '.join(parameter.name for parameter in parameters)}). {advice}"
        )


def _at_once(function: Callable[[], Any]) -> Any:
    return function()


class _Exactly(keras.layers.Layer):
    """Calls a function in which variables are read in their own dtype.

    Under a mixed policy, Keras rounds a weight for the layer that reads it, except in layers with
    autocast=False. The weights passed on from here are exact, and each layer of the cell reads them in
    its own precision.
    """

    def __init__(self):
        super().__init__(autocast=False, dtype="float32", name="exactly")
        self.built = True

    def do(self, function: Callable[[], Any]) -> Any:
        return self((), function=function)

    def call(self, _, function):
        return function()


class _Traced(keras.Operation):
    """A function whose output shapes are found by tracing; `error` is the exception that it raised."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self._function = function
        self.error: Exception | None = None

    def call(self, *args):
        try:
            return self._function(*args)
        except Exception as error:
            self.error = error
            raise


def _packed_like(z: Any, output: Any) -> Any:
    """Returns the output in the structure of the state z."""
    return keras.tree.pack_sequence_as(z, keras.tree.flatten(output))
