"""Averaged weights (--ema): what is evaluated and kept, while training goes on from the others."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf


@contextlib.contextmanager
def averaged_weights(
    optimizer: keras.optimizers.Optimizer, model: keras.Model, momentum: float
) -> Iterator[None]:
    """Inside the context the model has the optimiser's moving average of its weights.

    Args:
        optimizer: with use_ema, if momentum > 0.
        model: whose trainable variables it updates.
        momentum: of the average; 0: there is none, and nothing is changed.
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
    """Gives the model the averages for good; before the first update there are none to give."""
    if momentum and int(keras.ops.convert_to_numpy(optimizer.iterations)):
        optimizer.finalize_variable_values(model.trainable_variables)
