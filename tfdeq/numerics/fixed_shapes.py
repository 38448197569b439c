"""Whether the shapes of the current trace are fixed, as they are for XLA and for LiteRT."""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python.ops import control_flow_util


class Shapes(NamedTuple):
    """The sizes of a trace for LiteRT."""

    rows: int  # number of samples in a batch
    inputs: Mapping[str, Sequence[int | None]]  # input name -> its shape without the batch


_litert: contextvars.ContextVar[Shapes | None] = contextvars.ContextVar("litert", default=None)


@contextlib.contextmanager
def for_litert(
    rows: int = 1, inputs: Mapping[str, Sequence[int | None]] | None = None
) -> Iterator[None]:
    """A context whose traces use only what LiteRT has: no tensors that change their shape, no assertions.

    Histories then have all their rows from the start, and samples never leave their batch.

    Args:
        rows: number of samples in a batch.
        inputs: name -> shape without the batch, for `fixed_spec`.
    """
    token = _litert.set(Shapes(rows, inputs or {}))
    try:
        yield
    finally:
        _litert.reset(token)


def is_for_litert() -> bool:
    """Whether a graph is being made inside of `for_litert`."""
    return inside_for_litert() and not tf.executing_eagerly()


def inside_for_litert() -> bool:
    """Whether this is inside of `for_litert`, in eager mode too."""
    return _litert.get() is not None


def shapes_are_fixed() -> bool:
    """Whether XLA will compile the operations being made, or LiteRT will run them; False in eager mode."""
    if tf.executing_eagerly():
        return False
    return is_for_litert() or control_flow_util.GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )


def fixed_spec(name: str, spec: tf.TensorSpec) -> tf.TensorSpec:
    """Returns the spec of a signature's input [B, …] with the sizes of `for_litert`, or the spec itself.

    Raises:
        ValueError: for a size that is neither in the spec nor given.
    """
    shapes = _litert.get()
    if shapes is None:
        return spec
    given = tuple(shapes.inputs.get(name, spec.shape[1:]))
    if not spec.shape[1:].is_compatible_with(given):
        raise ValueError(
            f"The input {name!r} has the shape {spec.shape}, batch first; received the sizes {given}."
        )
    sizes = [own or size for own, size in zip(spec.shape[1:], given, strict=True)]
    if None in sizes:
        raise ValueError(
            f"LiteRT needs the shape of every input; that of {name!r} is {spec.shape}. Give examples, or "
            f"shapes={{{name!r}: {tuple(size or 16 for size in sizes)}}}, the shape without the batch."
        )
    return tf.TensorSpec([shapes.rows, *sizes], spec.dtype, name)


def unaliased(results: Sequence[Any], variables: Sequence[Any], step: tf.Tensor) -> list[Any]:
    """Returns the results of a loop's body, none of them another variable of the loop, for LiteRT.

    LiteRT copies the results to the variables one after the other. A result that is a variable itself would
    be read after this variable was overwritten.

    Args:
        results, variables: nests of tensors in the same order, the body's outputs and inputs.
        step: scalar int32, >= 0; a variable of the loop.
    """
    if not is_for_litert():
        return list(results)
    inputs = {variable.ref() for variable in tf.nest.flatten(list(variables))}
    # A zero that a converter cannot fold away.
    zero = tf.minimum(step, 0)

    def copied(result, variable):
        source = _source(result)
        if source is _source(variable) or source.ref() not in inputs:
            return result
        if result.dtype == tf.bool:
            return result | (zero < 0)
        return result + tf.cast(zero, result.dtype)

    return list(tf.nest.map_structure(copied, list(results), list(variables)))


def _source(tensor: tf.Tensor) -> tf.Tensor:
    while tensor.op.type in ("Identity", "StopGradient"):
        tensor = tensor.op.inputs[0]
    return tensor
