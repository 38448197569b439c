"""Averaged weights (--ema), which are evaluated and saved, while training continues from the others."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf


@contextlib.contextmanager
def averaged_weights(
    optimizer: keras.optimizers.Optimizer, model: keras.Model, momentum: float
) -> Iterator[None]:
    """A context in which the model has the optimiser's moving averages as weights.

    Args:
        optimizer: an optimiser, with use_ema if momentum > 0.
        model: the model whose trainable variables it updates.
        momentum: momentum of the average; 0: no average, and nothing changes.
    """
    variables = model.trainable_variables
    kept = [tf.identity(variable.value) for variable in variables] if momentum else []
    take_averages(optimizer, model, momentum)
    try:
        yield
    finally:
        for variable, value in zip(variables if momentum else [], kept, strict=True):
            variable.assign(value)


def take_averages(
    optimizer: keras.optimizers.Optimizer, model: keras.Model, momentum: float
) -> None:
    """Replaces the model's weights by the averages; before the first update there are none."""
    if momentum and int(keras.ops.convert_to_numpy(optimizer.iterations)):
        optimizer.finalize_variable_values(model.trainable_variables)
