"""Tensors that a signature returns and takes again in the next call, such as a carried memory."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)  # not a tuple, which would be a nest itself
class Leaf:
    """One carried tensor, as served."""

    name: str
    spec: tf.TensorSpec  # [B, …], half precision as float32
    dtype: tf.DType  # in the model


def layout_of(prefix: str, empty: Callable[[], Any]) -> Any:
    """Returns the structure of carried tensors as a nest of `Leaf`.

    Args:
        prefix: first part of the names; the keys on a tensor's path follow, joined by _.
        empty: returns the nest for one example, [1, …].
    """
    with tf.init_scope():  # outside the graph being traced
        nest = empty()
    found = []
    for path, value in keras.tree.flatten_with_path(nest):
        name = "_".join([prefix, *map(str, path)])
        dtype = tf.as_dtype(value.dtype)
        served = tf.float32 if dtype in (tf.float16, tf.bfloat16) else dtype
        spec = tf.TensorSpec([None, *value.shape[1:]], served, name)
        found.append(Leaf(name, spec, dtype))
    return keras.tree.pack_sequence_as(nest, found)


def meanings(layout: Any, meaning: str) -> dict[str, str]:
    """Returns the meaning of each tensor, with its shape and dtype, by name."""
    shown = {}
    for leaf in keras.tree.flatten(layout):
        shape = ", ".join(["B", *map(str, leaf.spec.shape[1:])])
        shown[leaf.name] = f"[{shape}] {leaf.spec.dtype.name}: {meaning}."
    return shown


def zeros(layout: Any, count: int) -> dict[str, np.ndarray]:
    """Returns the tensors of `count` texts that begin."""
    return {
        leaf.name: np.zeros([count, *leaf.spec.shape[1:]], leaf.spec.dtype.as_numpy_dtype)
        for leaf in keras.tree.flatten(layout)
    }


def served(layout: Any, nest: Any) -> dict[str, tf.Tensor]:
    """Returns a model's nest by served names and in served dtypes."""
    pairs = zip(keras.tree.flatten(layout), keras.tree.flatten(nest), strict=True)
    return {leaf.name: tf.cast(value, leaf.spec.dtype) for leaf, value in pairs}


def in_model(layout: Any, named: Mapping[str, Any]) -> Any:
    """Returns the nest for the model, the inverse of `served`."""
    return keras.tree.map_structure(lambda leaf: tf.cast(named[leaf.name], leaf.dtype), layout)


def finite_rows(tensors: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """[B]: whether all numbers of an example are finite."""
    floating = [value for value in tensors.values() if value.dtype.is_floating]
    rows = [
        tf.reduce_all(tf.math.is_finite(value), axis=range(1, value.shape.rank))
        for value in floating
    ]
    return tf.reduce_all(tf.stack(rows), axis=0)
