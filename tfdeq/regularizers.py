"""Penalties that keep a cell's fixed point easy to reach."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdeq.solvers.solver import require_integer, require_positive_integer


def jacobian_penalty(
    f: Callable[..., Any],
    z: Any,
    args: Any = (),
    probes: int = 1,
    *,
    power_steps: int = 0,
    seed: Any = None,
) -> tf.Tensor:
    """Estimates ‖∂f/∂z‖_F² / D as the mean squared entry of Jᵀε; unbiased for power_steps = 0.

    Hutchinson's estimator: E ‖Jᵀε‖² = ‖J‖_F² for noise ε of independent signs ±1, fresh in every
    call. With power_steps = p > 0 each sample's ε is first replaced, p times, by Jᵀε scaled back to
    unit mean square: the penalty then leans towards the direction that J amplifies most, the one
    that decides whether the iteration converges, and which noise in thousands of dimensions misses.
    The result is differentiable in args (through one application of f and its product), not in z,
    which is held fixed.

    Args:
        f: (z, *args) -> like z.
        z: nest of [B, ...] floating tensors, usually an equilibrium; D elements per sample.
        args: the tensors that a gradient should reach.
        probes: noise vectors to average over, >= 1. More probes, less variance. Default 1.
        power_steps: power iterations on each probe, >= 0, one product each. Default 0.
        seed: [2] integers for stateless noise, for a result that can be repeated. Default:
            TensorFlow's stateful generator.

    Returns:
        [] of z's dtype (the first leaf's).

    Raises:
        ValueError: if probes < 1 or power_steps < 0.

    Source: Bai, Koltun, Kolter, Stabilizing Equilibrium Models by Jacobian Regularization,
        arXiv:2106.14342, equation (6); the power iteration is our addition.

    Example:
        >>> z = tf.zeros([4, 3])
        >>> float(jacobian_penalty(lambda z: 0.0 * z, z))
        0.0
    """
    require_positive_integer("probes", probes)
    require_integer("power_steps", power_steps, lowest=0)
    args = tuple(args) if isinstance(args, tuple | list) else (args,)
    z = tf.nest.map_structure(lambda leaf: tf.stop_gradient(tf.convert_to_tensor(leaf)), z)
    leaves = tf.nest.flatten(z)
    # One linearisation serves every product; an outer tape sees through it to args.
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(leaves)
        output = f(z, *args)

    def product(cotangent):
        return tape.gradient(
            output,
            leaves,
            output_gradients=tf.nest.pack_sequence_as(z, cotangent),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )

    total = tf.zeros([], leaves[0].dtype)
    for probe in range(probes):
        vectors = [
            _signs(leaf, seed, probe * len(leaves) + index) for index, leaf in enumerate(leaves)
        ]
        for _ in range(power_steps):
            vectors = _unit_mean_square([tf.stop_gradient(part) for part in product(vectors)])
        for part in product(vectors):
            total += tf.cast(tf.reduce_sum(tf.square(part)), total.dtype)
    elements = tf.add_n([tf.size(leaf) for leaf in leaves])
    return total / tf.cast(elements * probes, total.dtype)


def _signs(leaf: tf.Tensor, seed: Any, index: int) -> tf.Tensor:
    """Independent signs ±1 of the leaf's shape and dtype."""
    if seed is None:
        uniform = tf.random.uniform(tf.shape(leaf))
    else:
        offset = tf.convert_to_tensor([0, index], tf.int64)
        seed = tf.cast(tf.convert_to_tensor(seed), tf.int64) + offset
        uniform = tf.random.stateless_uniform(tf.shape(leaf), seed)
    return tf.where(uniform < 0.5, -tf.ones_like(leaf), tf.ones_like(leaf))


def _unit_mean_square(parts: list[tf.Tensor]) -> list[tf.Tensor]:
    """Scales each sample, over all parts, to mean square 1 (a sample of zeros stays zero)."""
    flat = [tf.reshape(part, [tf.shape(part)[0], -1]) for part in parts]
    squares = tf.add_n([tf.reduce_sum(tf.square(part), axis=1) for part in flat])
    elements = tf.add_n([tf.shape(part)[1] for part in flat])
    tiny = tf.cast(1e-12, squares.dtype)
    scale = tf.math.rsqrt(squares / tf.cast(elements, squares.dtype) + tiny)
    return [
        part * tf.reshape(scale, tf.concat([tf.shape(scale), tf.ones_like(tf.shape(part)[1:])], 0))
        for part in parts
    ]
