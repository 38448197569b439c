"""Functional models as cells: which inputs are the state, and where a solve starts."""

from typing import Any

import keras
import tensorflow as tf


class UnknownSizeError(ValueError):
    """The input does not determine the size of the state."""


def is_functional(cell: keras.layers.Layer) -> bool:
    """Whether the cell is a functional model, which takes its inputs as one list."""
    return isinstance(cell, keras.Model) and hasattr(cell, "operations")


def declared_state(cell: keras.Model, batch: int | None, dtype: str) -> Any:
    """Returns the state as the model's inputs declare it; sizes may be unknown.

    The first inputs are the state, as many as the model has outputs: one tensor, or a list.
    """
    specs = [
        keras.KerasTensor((batch, *tensor.shape[1:]), dtype=dtype)
        for tensor in cell.inputs[: len(cell.outputs)]
    ]
    return specs[0] if len(specs) == 1 else specs


def zeros_for(cell: keras.Model, x: Any) -> Any:
    """Returns zeros like the model's state; sizes that it does not declare are taken from x.

    Raises:
        UnknownSizeError: if x has no tensor of the state's rank to take them from.
    """
    leaves = tf.nest.flatten(x)
    zeros = [_zeros(cell, spec, leaves) for spec in cell.inputs[: len(cell.outputs)]]
    return zeros[0] if len(zeros) == 1 else zeros


def _zeros(cell: keras.Model, spec: keras.KerasTensor, leaves: list[tf.Tensor]) -> tf.Tensor:
    declared = list(spec.shape[1:])
    source = leaves[0] if None not in declared else _source(spec, leaves)
    if source is None:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        raise UnknownSizeError(
            f"The size of the state z of the cell {cell.name!r} is unknown: its shape is "
            f"{tuple(spec.shape)}, and the input x, {shapes}, has no tensor of the same rank from "
            "which to take it. Pass a start z0 in the call, give the cell's input z a fixed size, or "
            "use a cell with initial_state(x)."
        )
    dynamic = tf.shape(source)
    sizes = [source.shape[0] or dynamic[0]]
    static = [source.shape[0]]
    for axis, size in enumerate(declared, start=1):
        known = source.shape[axis] if size is None else size
        sizes.append(dynamic[axis] if known is None else known)
        static.append(known)
    zeros = tf.zeros(tf.stack(sizes))
    zeros.set_shape(static)
    return zeros


def _source(spec: keras.KerasTensor, leaves: list[tf.Tensor]) -> tf.Tensor | None:
    """Returns the first tensor of x that is like the state, or else has its rank."""
    ranked = [leaf for leaf in leaves if len(leaf.shape) == len(spec.shape)]
    shape = tf.TensorShape([None, *spec.shape[1:]])
    alike = [leaf for leaf in ranked if shape.is_compatible_with(leaf.shape)]
    return next(iter([*alike, *ranked]), None)
