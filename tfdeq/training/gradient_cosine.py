"""Compares the training gradient with that of an accurate solve."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfdeq import Broyden, DEQLayer, Implicit, SolveScope

_EXAMPLES = 8
_TOLERANCE = 1e-6
# Multiple of the training budget in the forward solve; number of products in the backward solve.
_FORWARD, _BACKWARD = 16, 100


def gradient_cosine(
    loss: Callable[[Any, tf.Tensor], tf.Tensor],
    layers: Sequence[DEQLayer],
    weights: Sequence[Any],
    batch: Any,
    max_steps: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Compares the gradient for a batch's first examples with an accurate implicit one.

    The reference solves forward with sixteen times the budget, and backward by Broyden within 100
    products, both to a relative residual of 1e-6.

    Args:
        loss: (batch, max_steps) -> a scalar, in evaluation mode.
        layers: the layers that the loss calls. weights: the weights to differentiate with respect to.
        batch: a nest of tensors [B, …].
        max_steps: scalar int32, the budget in training.

    Returns:
        gradient_cosine, a scalar: for the gradients of all weights together; NaN if one is zero.
        reference_residual, a scalar: the largest residual of the reference's solves. If the reference
        has not converged, the cosine is not meaningful.
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
    """A context in which the layers have an accurate implicit gradient."""
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
    """Returns the gradient as one vector, and the largest residual, forward or backward."""
    with SolveScope(tolerance=tolerance, compaction=False) as scope, tf.GradientTape() as tape:
        value = loss(batch, max_steps)
    parts = tape.gradient(value, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    parts = [tf.reshape(tf.cast(tf.convert_to_tensor(part), tf.float32), [-1]) for part in parts]
    solutions = [*scope.solutions.values(), *scope.backward_solutions.values()]
    largest = [tf.reduce_max(tf.cast(one.residual, tf.float32)) for one in solutions]
    return tf.concat(parts, 0), tf.reduce_max(tf.stack(largest))
