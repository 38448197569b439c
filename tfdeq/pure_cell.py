"""What a solve needs of a Keras layer used as cell: a pure function, its parameters, a start."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdeq import solve_scope


class PureCell:
    """A cell seen as a function f(z, x, theta) without side effects.

    Args:
        cell: see `DEQLayer`.
        compute_dtype: name of the dtype that the layer around it computes in.
    """

    def __init__(self, cell: keras.layers.Layer, compute_dtype: str):
        self._cell = cell
        self._compute_dtype = compute_dtype
        half = compute_dtype in ("float16", "bfloat16")
        self._exactly = _Exactly().do if half else _at_once

    def functions(
        self, training: bool, mask: Any
    ) -> tuple[Callable[..., Any], list[tf.Tensor], Callable[[Any, Any], None]]:
        """Returns f(z, x, theta), theta, and a function that advances seeds and moving statistics.

        f takes the mask's leaves as a further argument, if there are any. Every application of f sees
        the same seeds and statistics: those of the call's beginning.
        """
        trainable = self._cell.trainable_variables
        non_trainable = self._cell.non_trainable_variables
        theta, frozen = self._exactly(
            lambda: [
                [tf.identity(variable.value) for variable in variables]
                for variables in (trainable, non_trainable)
            ]
        )

        def apply(z, x, theta, masks):
            mapping = [
                *zip(trainable, theta, strict=True),
                *zip(non_trainable, frozen, strict=True),
            ]
            # The scope too would round what it is given.
            with self._exactly(lambda: keras.StatelessScope(state_mapping=mapping)) as scope:
                output = self.apply(z, x, training=training, mask=_like(mask, masks))
            return output, scope

        def f(z, x, theta, masks=()):
            output, _ = apply(z, x, theta, masks)
            return tf.nest.map_structure(lambda new, old: tf.cast(new, old.dtype), output, z)

        def update_state(z, x):
            if not non_trainable:
                return
            z, x, fixed = tf.nest.map_structure(tf.stop_gradient, (z, x, theta))
            _, scope = apply(z, x, fixed, _leaves(mask))
            for variable, before in zip(non_trainable, frozen, strict=True):
                value = scope.get_current_value(variable)
                if value is not before:  # what the cell did not assign stays
                    variable.assign(value)

        return f, theta, update_state

    def apply(self, z, x, training=None, mask=None):
        """Calls the cell as its kind wants to be called."""
        # What the cell solves inside is part of one evaluation.
        with solve_scope.suspended():
            if _is_functional(self._cell):
                return self._cell([z, *keras.tree.flatten(x)], training=training)
            extra = {}
            if mask is not None and "mask" in inspect.signature(self._cell.call).parameters:
                extra["mask"] = mask
            return self._cell(z, x, training=training, **extra)

    def inject(self, x: Any) -> Any:
        """Returns what stands for the layer's input x in every application."""
        if not hasattr(self._cell, "inject"):
            return x
        with keras.name_scope(self._cell.name):
            return self._cell.inject(x)

    def start(self, x: Any) -> Any:
        """Returns the start of the solve for the layer's input x."""
        if hasattr(self._cell, "initial_state"):
            return self.as_state(self._cell.initial_state(x))
        if _is_functional(self._cell):
            batch = tf.shape(tf.nest.flatten(x)[0])[:1]
            tail = self._cell.inputs[0].shape[1:]
            start = tf.zeros(tf.concat([batch, tail], axis=0))
            start.set_shape([None, *tail])
            return self.as_state(start)
        return self.as_state(tf.nest.map_structure(tf.zeros_like, x))

    def as_state(self, z: Any) -> Any:
        """Casts to the dtype that the solver works in: never below float32."""
        dtype = tf.float64 if self._compute_dtype == "float64" else tf.float32
        return tf.nest.map_structure(lambda leaf: tf.cast(leaf, dtype), z)

    def state_spec(self, x: Any) -> Any:
        """The state's shapes for symbolic inputs, by tracing `start` (nothing is computed)."""
        specs = keras.tree.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), x)
        start = tf.function(self.start, autograph=False).get_concrete_function(specs)
        return keras.tree.map_structure(
            lambda leaf: keras.KerasTensor(tuple(leaf.shape), dtype=leaf.dtype.name),
            start.structured_outputs,
        )

    def output_spec(self, z: Any, x: Any) -> Any:
        """The shapes of the cell's output for symbolic z and x; builds the cell."""
        leaves = keras.tree.flatten((z, x))
        if all(None not in leaf.shape[1:] for leaf in leaves):
            return self.apply(z, self.inject(x))
        # By tracing: what is not known yet, as a sequence's length, is a tensor there.
        traced = _Traced(lambda z, x: self.apply(z, self.inject(x)))
        try:
            return traced.compute_output_spec(z, x)
        except Exception:
            # Keras's own words are about the operation here: the cell's say more.
            if traced.error is None:
                raise
            raise traced.error from None


def _at_once(function: Callable[[], Any]) -> Any:
    return function()


class _Exactly(keras.layers.Layer):
    """Calls a function where variables are read in their own dtype.

    Under a mixed policy Keras rounds a weight for the layer that reads it, except for layers that say
    autocast=False. The cell's own layers read what they are given from here, each in its precision.
    """

    def __init__(self):
        super().__init__(autocast=False, dtype="float32", name="exactly")
        self.built = True

    def do(self, function: Callable[[], Any]) -> Any:
        return self((), function=function)

    def call(self, _, function):
        return function()


class _Traced(keras.Operation):
    """A function whose output's shapes are found by tracing; `error` is what it raised."""

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


def _leaves(mask: Any) -> list[tf.Tensor]:
    return [leaf for leaf in keras.tree.flatten(mask) if leaf is not None]


def _like(mask: Any, leaves: Any) -> Any:
    """The mask with its leaves, those that are not None, replaced in order."""
    remaining = iter(leaves)
    flat = [None if leaf is None else next(remaining) for leaf in keras.tree.flatten(mask)]
    return keras.tree.pack_sequence_as(mask, flat) if flat else None


def _is_functional(cell: keras.layers.Layer) -> bool:
    """Whether the cell is a functional model, which takes its inputs as one list."""
    return isinstance(cell, keras.Model) and hasattr(cell, "operations")
