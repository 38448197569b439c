"""The linear layers between an equilibrium and the logits, in float64."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from tfdeq.certificates.lipschitz import activation_name
from tfdeq.models.multiscale_heads import BranchMeans

# Functions at the end of a model that do not change the order of the logits.
_KEEP_THE_ORDER = ("linear", "softmax", "log_softmax")


def readout(head: list[keras.layers.Layer], states: Any) -> tuple[tf.Tensor, Any]:
    """Returns the logits of states, and their gradients, which are the same for all states.

    Args:
        head: the layers from the state to the logits; a softmax at the end is omitted.
        states: [B, …] float64, or a nest of them.

    Returns:
        logits [B, K], and rows [K, …], a nest like the states: row k times a change of the state is the
        change of logit k.

    Raises:
        ValueError: for a layer that is not linear, or if the last output is not logits.
    """
    head = list(head)
    while head and _is_softmax(head[-1]):
        head.pop()
    maps = [_linear(layer, last=layer is head[-1]) for layer in head]

    def apply(z):
        for linear in maps:
            z = linear(z)
        return z

    start = tf.nest.map_structure(_zeros_like_one, states)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(start)
        output = apply(start)
        if output.shape.rank != 2 or output.shape[1] is None or output.shape[1] < 2:
            raise ValueError(
                "A model with a certified radius ends with logits [B, classes], of two classes at least; "
                f"this one's end is of shape {output.shape}. Its last layer should be Dense(classes)."
            )
        each = tf.unstack(output, axis=1)
    rows = [tape.gradient(logit, start) for logit in each]
    return apply(states), tf.nest.map_structure(lambda *leaves: tf.concat(leaves, 0), *rows)


def _zeros_like_one(states: tf.Tensor) -> tf.Tensor:
    zeros = tf.zeros(tf.concat([[1], tf.shape(states)[1:]], axis=0), tf.float64)
    zeros.set_shape([1, *states.shape[1:]])
    return zeros


def _is_softmax(layer: keras.layers.Layer) -> bool:
    activation = type(layer) is layers.Activation and activation_name(layer) in _KEEP_THE_ORDER
    return type(layer) is layers.Softmax or activation


def _linear(layer: keras.layers.Layer, last: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the layer as a function on float64 tensors."""
    known = _KEEP_THE_ORDER if last else ("linear",)
    fits = not hasattr(layer, "activation") or activation_name(layer) in known
    if type(layer) not in _LINEAR or not fits:
        raise ValueError(
            "A certified radius wants linear layers between the equilibrium and the logits: "
            f"{', '.join(kind.__name__ for kind in _LINEAR)}, without activations; received "
            f"{type(layer).__name__} {layer.name!r}. Leave it out, or pass the model's Lipschitz constant, "
            "lipschitz=."
        )
    return lambda z: _LINEAR[type(layer)](layer, z)


def _dense(layer: keras.layers.Layer, z: tf.Tensor) -> tf.Tensor:
    def exact(weight):
        return tf.cast(ops.cast(weight, layer.compute_dtype), tf.float64)

    z = tf.tensordot(z, exact(layer.kernel), 1)
    return z + exact(layer.bias) if layer.use_bias else z


def _average(layer: keras.layers.Layer, z: tf.Tensor) -> tf.Tensor:
    return tf.nn.avg_pool2d(z, layer.pool_size, layer.strides, layer.padding.upper())


def _flatten(layer: keras.layers.Layer, z: tf.Tensor) -> tf.Tensor:
    return tf.reshape(z, [tf.shape(z)[0], *layer.output.shape[1:]])


_LINEAR: dict[type, Callable] = {
    layers.Dense: _dense,
    layers.Flatten: _flatten,
    layers.Reshape: _flatten,
    layers.AveragePooling2D: _average,
    layers.GlobalAveragePooling2D: lambda layer, z: tf.reduce_mean(z, axis=(1, 2)),
    BranchMeans: lambda layer, z: layer.call(z),
    layers.Dropout: lambda layer, z: z,
    layers.Identity: lambda layer, z: z,
    layers.Activation: lambda layer, z: z,
}
