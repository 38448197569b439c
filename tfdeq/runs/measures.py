"""Measures of a model's answers for each example, from Keras's losses and metrics."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# A loss object, a function (targets, outputs) -> [B, …], or the name of one.
Given = str | keras.losses.Loss | Callable[[Any, Any], Any]
Measure = Callable[[Any, Any], tf.Tensor]  # (targets, outputs) -> [B] float32

# For logits [B, …, classes] and integers [B, …], in nats.
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def per_example(given: Given) -> Measure:
    """Returns (targets, outputs) -> [B] float32, the mean over the values of each example.

    A loss object's own reduction is not used.

    Raises:
        ValueError: for a name that is not that of a function.
    """
    found = _by_name(given) if isinstance(given, str) else given
    call = found.call if isinstance(found, keras.losses.Loss) else found

    def measure(targets: Any, outputs: Any) -> tf.Tensor:
        values = tf.cast(call(targets, outputs), tf.float32)
        return tf.reduce_mean(values, axis=range(1, values.shape.rank))

    return measure


def described(measures: Mapping[str, Given], targets: Any, outputs: Any) -> dict[str, Any]:
    """Returns the measures as JSON, as far as Keras alone can restore them.

    A measure that is the caller's own code, or whose settings Keras does not save, is omitted, because
    a program that only reads the run's folder could not compute it.

    Args:
        targets, outputs: those of some examples, on which a measure and its restored copy must agree.
    """
    found = {}
    for name, given in measures.items():
        given = _by_name(given) if isinstance(given, str) else given
        try:
            text = keras.saving.serialize_keras_object(given)
            again = _restored(text)(targets, outputs)
        except Exception:  # from a user's code; Keras's errors have no common class
            continue
        # Keras saves some losses without their settings, such as Huber's delta.
        if np.array_equal(again, per_example(given)(targets, outputs), equal_nan=True):
            found[name] = text
    return found


def restored(described: Mapping[str, Any]) -> dict[str, Measure]:
    """Returns the measures that `described` wrote."""
    return {name: _restored(text) for name, text in described.items()}


def _restored(text: Mapping[str, Any]) -> Measure:
    # A caller's own class is known in the process that trains, but not in the one that exports.
    own = text.get("registered_name") not in (None, "function")
    if own or not str(text.get("module", "keras")).startswith(("keras", "builtins")):
        raise ValueError(f"{text.get('class_name')} is not Keras's own.")
    if text.get("registered_name") == "function":
        return per_example(_by_name(text["config"]))
    return per_example(keras.saving.deserialize_keras_object(dict(text)))


def _by_name(name: str) -> Callable[[Any, Any], Any]:
    """Returns Keras's loss or metric function with a name."""
    function = getattr(keras.losses, name, None) or getattr(keras.metrics, name, None)
    if function is None or isinstance(function, type):
        raise ValueError(
            f"Keras has no loss or metric function {name!r}. Name one, such as "
            "'sparse_categorical_accuracy', or give a function (targets, outputs) -> [B, …]."
        )
    return function
