"""Writes the SavedModel of a version: signatures, weights and lookup tables of layers."""

import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

_Resource = tf.saved_model.experimental.TrackableResource
_Function = tf.types.experimental.ConcreteFunction


def write(
    model: keras.Model,
    functions: Mapping[str, _Function],
    folder: pathlib.Path,
    gradients: bool = False,
) -> None:
    """Writes functions of a model under their names, with everything that they use.

    The loaded object has `weights` and `trainable_weights`, in the order of the model's variables.

    Args:
        model: the model whose weights the functions use.
        functions: name -> function.
        folder: the folder to write to.
        gradients: whether to write the functions' gradients too.

    Raises:
        ValueError: for a function that uses something that is neither a weight nor an attribute of a
            layer.
    """
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    module.trainable_weights = [variable.value for variable in model.trainable_variables]
    module.tables = captured(model, functions.values())
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=gradients)
    try:
        tf.saved_model.save(module, str(folder), signatures=dict(functions), options=options)
    except AssertionError as error:  # TensorFlow's error for a resource that it cannot reach
        raise ValueError(
            f"The model {model.name!r} uses a resource that is neither a weight nor an attribute of a "
            "layer, for example a lookup table inside a function. It cannot be saved with the model. "
            "Make it an attribute of the layer that uses it, or export only the part of the model "
            f"after it. TensorFlow said: {str(error)[:500]}"
        ) from error


def captured(model: keras.Model, functions: Iterable[_Function]) -> list[_Resource]:
    """Returns the tables among the attributes of a model's layers that functions use.

    A StringLookup, IntegerLookup, TextVectorization or Hashing layer keeps its vocabulary in one.
    """
    used = {id(tensor) for function in functions for tensor in function.captured_inputs}
    found: dict[int, _Resource] = {}
    for layer in model._flatten_layers():
        for value in _leaves(vars(layer)):
            if isinstance(value, _Resource) and id(value.resource_handle) in used:
                found[id(value)] = value
    return list(found.values())


def _leaves(value: Any) -> Iterator[Any]:
    """Yields the contents of dicts, lists and tuples; tf.nest cannot sort keys of different types."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
