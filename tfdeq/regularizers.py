"""Penalties that keep a cell's fixed point easy to reach."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdeq.adjoints.adjoint import vector_jacobian_product
from tfdeq.solvers.solver import require_positive_integer


def jacobian_penalty(
    f: Callable[..., Any], z: Any, args: Any = (), probes: int = 1, *, seed: Any = None
) -> tf.Tensor:
    """Estimates ‖∂f/∂z‖_F² / D, the mean squared entry of Jᵀε, without bias.

    Hutchinson's estimator: E ‖Jᵀε‖² = ‖J‖_F² for ε ~ N(0, I). The noise is fresh in every call. The
    result is differentiable in args (through one application of f and its product), not in z, which
    is held fixed.

    Args:
        f: (z, *args) -> like z.
        z: nest of [B, ...] floating tensors, usually an equilibrium; D elements per sample.
        args: the tensors that a gradient should reach.
        probes: noise vectors to average over, >= 1. More probes, less variance. Default 1.
        seed: [2] integers for stateless noise, for a result that can be repeated. Default: TensorFlow's
            stateful generator.

    Returns:
        [] of z's dtype (the first leaf's).

    Raises:
        ValueError: if probes < 1.

    Source: Bai, Koltun, Kolter, Stabilizing Equilibrium Models by Jacobian Regularization,
        arXiv:2106.14342, equation (6).

    Example:
        >>> z = tf.zeros([4, 3])
        >>> float(jacobian_penalty(lambda z: 0.0 * z, z))
        0.0
    """
    require_positive_integer("probes", probes)
    args = tuple(args) if isinstance(args, tuple | list) else (args,)
    z = tf.nest.map_structure(lambda leaf: tf.stop_gradient(tf.convert_to_tensor(leaf)), z)
    leaves = tf.nest.flatten(z)
    total = tf.zeros([], leaves[0].dtype)
    for probe in range(probes):
        noise = [
            _noise(leaf, seed, probe * len(leaves) + index) for index, leaf in enumerate(leaves)
        ]
        product = vector_jacobian_product(
            f, z, args, tf.nest.pack_sequence_as(z, noise), lambda z, _: z
        )
        for part in tf.nest.flatten(product):
            total += tf.cast(tf.reduce_sum(tf.square(part)), total.dtype)
    elements = tf.add_n([tf.size(leaf) for leaf in leaves])
    return total / tf.cast(elements * probes, total.dtype)


def _noise(leaf: tf.Tensor, seed: Any, index: int) -> tf.Tensor:
    if seed is None:
        return tf.random.normal(tf.shape(leaf), dtype=leaf.dtype)
    offset = tf.convert_to_tensor([0, index], tf.int64)
    seed = tf.cast(tf.convert_to_tensor(seed), tf.int64) + offset
    return tf.random.stateless_normal(tf.shape(leaf), seed, dtype=leaf.dtype)
