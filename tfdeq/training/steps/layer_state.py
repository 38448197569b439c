"""The state that layers write while a gradient is computed, and its restoration."""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf


class LayerState:
    """The moving statistics, random generators and metrics of layers, as they were before a step.

    It includes only Keras variables that a layer lists.

    Args:
        layers: the model, and layers whose metrics may be outside it; all of them built.
    """

    def __init__(self, layers: Iterable[keras.layers.Layer]):
        layers = list(layers)
        state = _each_once(
            variable for layer in layers for variable in layer.non_trainable_variables
        )
        metrics = (variable for layer in layers for variable in layer.metrics_variables)
        self._variables = _each_once([*state, *metrics])
        # The weights of frozen layers are excluded: they do not change, and may be large.
        every = [one for layer in layers for one in layer._flatten_layers()]
        frozen = {id(weight) for one in every if not one.trainable for weight in one.weights}
        self._statistics = [
            index
            for index, variable in enumerate(state)
            if "float" in variable.dtype and id(variable) not in frozen
        ]

    def values(self) -> list[tf.Tensor]:
        """On a replica: returns copies of all values."""
        return [tf.identity(variable.value) for variable in self._variables]

    def put_back(self, before: list[tf.Tensor]) -> None:
        """On a replica: assigns the values that `values` returned."""
        for variable, value in zip(self._variables, before, strict=True):
            variable.assign(value)

    def is_spoilt(self, before: list[tf.Tensor]) -> tf.Tensor:
        """On a replica: returns a scalar bool, whether a statistic became NaN or infinite since `values`.

        This can occur with finite loss and gradient: if a variance overflows, its inverse is 0.
        """
        spoilt = tf.constant(False)
        for index in self._statistics:
            new = tf.math.is_finite(tf.convert_to_tensor(self._variables[index].value))
            # A value that was not finite before is not a statistic, but for example a mask.
            spoilt |= tf.reduce_any(~new & tf.math.is_finite(before[index]))
        return spoilt


def _each_once(variables: Iterable[Any]) -> list[Any]:
    """Returns each variable once: layers share generators, and a model has its layers' metrics."""
    return list({id(variable): variable for variable in variables}.values())
