"""How near the gradient of training is to that of a tight solve."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfdeq import Broyden, DEQLayer, Implicit, SolveScope

_EXAMPLES = 8
_TOLERANCE = 1e-6
# Times the training's budget, forward; products backward.
_FORWARD, _BACKWARD = 16, 100


def gradient_cosine(
    loss: Callable[[Any, tf.Tensor], tf.Tensor],
    layers: Sequence[DEQLayer],
    weights: Sequence[Any],
    batch: Any,
    max_steps: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Compares the gradient of a batch's first examples with a tight implicit one.

    The reference solves forward with sixteen times the budget, and backward by Broyden within 100
    products, both to a relative residual of 1e-6.

    Args:
        loss: (batch, max_steps) -> [], in evaluation mode.
        layers: that the loss calls. weights: what the gradients are of.
        batch: a nest of tensors [B, …].
        max_steps: [] int32, the training's budget.

    Returns:
        gradient_cosine []: of the gradients of all weights together; NaN where one vanishes.
        reference_residual []: the largest residual of the reference's solves. A cosine to a reference that
        has not settled says little.
    """
    batch = tf.nest.map_structure(lambda leaf: leaf[:_EXAMPLES], batch)
    weights = [getattr(weight, "value", weight) for weight in weights]
    own, _ = _gradient(loss, weights, batch, max_steps)
    with _tight(layers):
        tight, residual = _gradient(
            loss, weights, batch, _FORWARD * max_steps, tolerance=_TOLERANCE
        )
    product = tf.tensordot(own, tight, 1)
    return {
        "gradient_cosine": product / (tf.norm(own) * tf.norm(tight)),
        "reference_residual": residual,
    }


@contextlib.contextmanager
def _tight(layers: Sequence[DEQLayer]) -> Iterator[None]:
    """Inside, the layers carry a tight implicit gradient."""
    before = [layer.adjoint for layer in layers]
    tight = Implicit(Broyden(max_steps=_BACKWARD, tolerance=_TOLERANCE))
    try:
        for layer in layers:
            layer.adjoint = tight
        yield
    finally:
        for layer, adjoint in zip(layers, before, strict=True):
            layer.adjoint = adjoint


def _gradient(loss, weights, batch, max_steps, tolerance=None) -> tuple[tf.Tensor, tf.Tensor]:
    """The gradient as one vector, and the largest residual, forward or backward."""
    with SolveScope(tolerance=tolerance, compaction=False) as scope, tf.GradientTape() as tape:
        value = loss(batch, max_steps)
    parts = tape.gradient(value, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    parts = [tf.reshape(tf.cast(tf.convert_to_tensor(part), tf.float32), [-1]) for part in parts]
    solutions = [*scope.solutions.values(), *scope.backward_solutions.values()]
    largest = [tf.reduce_max(tf.cast(one.residual, tf.float32)) for one in solutions]
    return tf.concat(parts, 0), tf.reduce_max(tf.stack(largest))
